"""Runs that start from given weights: the same as a loop written by hand, known by what the weights are, and no trap."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from tiny import CLIENTS, TinyClient, fit, tiny_data, tiny_federation, tiny_trainer, vector
from torch import nn

from fl_lightning import CohortSampler, ConfigurationError, LastCheckpoint, LocalTraining, RunRecord, Simulation
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks.digests import config_sha256, experiment, weights_sha256
from fl_lightning.checkpoints.start_digest import start_sha256
from fl_lightning.checkpoints.warm_start import WarmStart, read_weights
from fl_lightning.cli import main
from fl_lightning.data import TensorSamples


def other_weights(**kwargs: Any) -> TinyClient:
    """Those of another seed than all federations here have."""
    torch.manual_seed(7)
    return TinyClient(**kwargs)


def save(path: Path, content: Any = None, **kwargs: Any) -> str:
    torch.save(other_weights().state_dict() if content is None else content, path, **kwargs)
    return str(path)


def run(folder: Path, start_from: Any, rounds: int = 1, **kwargs: Any) -> dict[str, Any]:
    """The record of a run whose configuration names the file."""
    config = {"seed_everything": 0, "model": {"start_from": start_from}, "trainer": {"max_epochs": 1}}
    callbacks = [LastCheckpoint(), RunRecord(config)]
    federation = tiny_federation(start_from=start_from)
    fit(federation, rounds=rounds, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True, **kwargs)
    return json.loads((folder / "run.json").read_text())


def test_rounds_from_given_weights_are_those_of_a_loop_written_by_hand(tmp_path):
    plain = {"norm": False, "dropout": 0.0}
    path = save(tmp_path / "w.pt", other_weights(**plain).state_dict())
    federation = tiny_federation(
        client=TinyClient(**plain), start_from=path, aggregator=FedAvg(), attacks=[],
        cohort=CohortSampler(clients_per_round=CLIENTS, malicious_fraction=0.0),
        local=LocalTraining(epochs=1, batch_size=1000),
    )  # fmt: skip
    data = tiny_data()
    fit(federation, data, rounds=3)
    assert isinstance(data.train, TensorSamples)
    model = other_weights(**plain)
    for _ in range(3):
        old = [p.detach().clone() for p in model.parameters()]
        total = [torch.zeros_like(p) for p in old]
        for indices in data.clients:  # one step on all samples that a client has
            for p, q in zip(model.parameters(), old, strict=True):
                p.data.copy_(q)
            inputs, targets = data.train.inputs[indices], data.train.targets[indices]
            loss = nn.functional.cross_entropy(model(inputs), targets)
            for p, sum_, grad in zip(
                model.parameters(), total, torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                sum_ += len(indices) / sum(map(len, data.clients)) * (p.detach() - 0.1 * grad)
        for p, sum_ in zip(model.parameters(), total, strict=True):
            p.data.copy_(sum_)
    assert (vector(federation.client) - vector(model)).abs().max() < 1e-6
    assert (vector(federation.client) - vector(other_weights(**plain))).abs().max() > 1e-3


def test_every_kind_of_file_gives_the_same_weights_and_digest(tmp_path):
    weights = other_weights().state_dict()
    paths = [
        save(tmp_path / "bare.pt"),
        save(tmp_path / "turned.pt", dict(reversed(weights.items()))),
        save(tmp_path / "nested.ckpt", {"state_dict": weights, "epoch": 3, "pytorch-lightning_version": "2.6.4"}),
        save(tmp_path / "old.pth", _use_new_zipfile_serialization=False),
    ]
    federation = tiny_federation(client=other_weights())
    fit(federation, rounds=1, callbacks=[LastCheckpoint()], default_root_dir=tmp_path / "run", enable_checkpointing=True)
    trained = federation.client.state_dict()
    for path, expected in [*((p, weights) for p in paths), (tmp_path / "run", trained), (tmp_path / "run/last.ckpt", trained)]:
        found = read_weights(path)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len({start_sha256(path) for path in paths}) == 1
    assert start_sha256(tmp_path / "run") == start_sha256(save(tmp_path / "out.pt", trained)) != start_sha256(paths[0])


def test_a_run_is_known_by_the_weights_and_not_by_where_they_lie(tmp_path):
    path = save(tmp_path / "w.pt")
    first = run(tmp_path / "a", path)
    assert first["start_from"] == {"path": path, "sha256": start_sha256(path)}
    assert first["initial_weights_sha256"] == weights_sha256(other_weights())
    moved = run(tmp_path / "b", save(tmp_path / "moved.pt"))
    assert (moved["config_hash"], moved["weights_sha256"]) == (first["config_hash"], first["weights_sha256"])
    changed = {name: tensor + 1 for name, tensor in other_weights().state_dict().items()}
    assert run(tmp_path / "c", save(Path(path), changed))["config_hash"] != first["config_hash"]
    assert start_sha256(path) != first["start_from"]["sha256"]  # though it was asked for before
    own = run(tmp_path / "d", None)
    assert own["start_from"] is None
    before = {"seed_everything": 0, "model": {"aggregator": "FedAvg"}}
    null = {**before, "model": {**before["model"], "start_from": None}}
    assert (experiment(null), config_sha256(null)) == (experiment(before), config_sha256(before))


def test_a_run_goes_on_without_the_file(tmp_path):
    path = save(tmp_path / "w.pt")
    whole = run(tmp_path / "whole", path, rounds=3)
    run(tmp_path / "halves", path, rounds=1)
    Path(path).unlink()
    folder = tmp_path / "halves"
    for start_from in (path, str(tmp_path / "elsewhere.pt")):
        config = {"seed_everything": 0, "model": {"start_from": start_from}, "trainer": {"max_epochs": 1}}
        fit(
            tiny_federation(start_from=start_from), rounds=2 if start_from == path else 3, ckpt_path="last",
            callbacks=[LastCheckpoint(), RunRecord(config)], default_root_dir=folder, enable_checkpointing=True,
        )  # fmt: skip
    ended = json.loads((folder / "run.json").read_text())
    for key in ("weights_sha256", "initial_weights_sha256", "config_hash", "start_from"):
        assert ended[key] == whole[key], key
    with pytest.raises(
        ConfigurationError, match=r"another configuration: model is None there|start_from.* there and None here"
    ):
        fit(
            tiny_federation(), rounds=4, ckpt_path="last", default_root_dir=folder, enable_checkpointing=True,
            callbacks=[LastCheckpoint(), RunRecord({**config, "model": {"start_from": None}})],
        )  # fmt: skip


def test_an_evaluation_before_training_is_of_the_weights_and_one_after_it_is_not(tmp_path):
    federation = tiny_federation(start_from=save(tmp_path / "w.pt"))
    tiny_trainer().validate(federation, tiny_data(), verbose=False)
    assert weights_sha256(federation.client) == weights_sha256(other_weights())
    fit(federation, rounds=1)
    trained = weights_sha256(federation.client)
    tiny_trainer().validate(federation, tiny_data(), verbose=False)
    assert weights_sha256(federation.client) == trained != weights_sha256(other_weights())


def test_nothing_is_said_of_weights_by_chance(tmp_path, caplog):
    federation = tiny_federation(start_from=save(tmp_path / "w.pt"))
    federation.by_chance = True
    with caplog.at_level(logging.WARNING):
        fit(federation, rounds=1)
    assert "torch was not seeded" not in caplog.text


def trained_on_ranks(cases: list[list[str]]) -> list[str]:
    """The digest of what is trained, or what is said, for the path that each rank has, case by case."""
    found = []
    for paths in cases:
        federation = tiny_federation(start_from=paths[torch.distributed.get_rank()])
        try:
            fit(federation, rounds=1, devices=len(paths))
            found.append(weights_sha256(federation.client))
        except ConfigurationError as error:
            found.append(f"refused: {error}")
    return found


def test_on_ranks_the_bits_are_the_same_and_all_are_told_what_one_of_them_lacks(tmp_path):
    path, gone = save(tmp_path / "w.pt"), str(tmp_path / "gone.pt")
    other = save(tmp_path / "other.pt", TinyClient().state_dict())
    federation = tiny_federation(start_from=path)
    fit(federation, rounds=1)
    for same, lacking, differing in on_ranks(2, trained_on_ranks, [[path, path], [path, gone], [path, other]]):
        assert same == weights_sha256(federation.client)
        assert lacking.startswith(f"refused: rank 1: model.start_from: there is no file {gone}")
        assert lacking.endswith("all ranks must see the same file")
        assert differing.endswith("has other weights on rank 1 than on rank 0; all ranks must see the same file")


class Program:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def weights(**changed: Any) -> dict[str, Any]:
    return {**other_weights().state_dict(), **changed}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: weights(**{"net.0.weight": torch.zeros(8, 6)}), r"another model than TinyClient: net\.0\.weight is \(8, 6\)"),
        (lambda: weights(extra=torch.zeros(1)), r"extra is in the file alone"),
        (lambda: {"net.0.bias": torch.zeros(37)}, r"net\.0\.weight is not in the file; .* and \d+ more|net\.0\.weight is not"),
        (lambda: weights(**{"net.0.bias": torch.zeros(37).double()}), r"net\.0\.bias is torch\.float64 in the file"),
        (lambda: weights(**{"net.0.bias": torch.full((37,), torch.nan)}), r"not finite in net\.0\.bias"),
        (lambda: weights(**{"net.0.bias": torch.full((37,), torch.inf)}), r"not finite in net\.0\.bias"),
        (lambda: weights(**{"net.1.running_mean": torch.full((37,), torch.nan)}), r"not finite in net\.1\.running_mean"),
        (lambda: weights(**{"net.0.bias": torch.zeros(37).to_sparse()}), r"'net\.0\.bias' is a tensor of a kind"),
        (lambda: {"epoch": 3, "model": weights()}, r"'epoch' is a int; save the weights alone"),
        (dict, r"has no weights, but \{\}"),
        (lambda: torch.zeros(3), r"has no weights, but"),
        (lambda: {"state_dict": {}}, r"has no weights, but"),
        (lambda: {0: torch.zeros(3)}, r"0 is a tensor|0 is a "),
        (lambda: {"state_dict": weights(), "x": Program()}, "holds more than tensors and plain data"),
        (lambda: other_weights(), "holds more than tensors and plain data"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_training(tmp_path, content, message):
    path = save(tmp_path / "w.pt", content())
    with pytest.raises(ConfigurationError, match=message) as caught:
        WarmStart(path).check(TinyClient())
    assert str(caught.value).startswith("model.start_from: ")
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_files_that_are_no_such_thing(tmp_path):
    whole = Path(save(tmp_path / "w.pt")).read_bytes()
    value = other_weights().state_dict()["net.0.bias"].numpy().tobytes()
    at = whole.index(value)
    for name, content, said in (
        ("cut.pt", whole[: len(whole) // 2], "is damaged"),
        ("empty.pt", b"", "is damaged"),
        ("text.pt", b"weights", "is damaged"),
        ("flipped.pt", whole[: at + 3] + bytes([whole[at + 3] ^ 1]) + whole[at + 4 :], "cannot be read"),
        ("program.pt", pickle.dumps(Program()), "holds more than tensors"),
        ("hub.safetensors", b"\2" + bytes(7) + b"{}", r"load it by safetensors\.torch\.load_file, and give what torch\.save"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=said) as caught:
            fit(tiny_federation(start_from=tmp_path / name), rounds=1)
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
    for path, said in (
        (tmp_path / "gone.pt", "there is no file"),
        (tmp_path, r"there is no last\.ckpt in"),
        ("a" * 5000, "too long"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^model\.start_from: .*{said}"):
            start_sha256(path)
    for wrong in (3, "", b"w.pt", "a\0b", ["w.pt"]):
        with pytest.raises(ConfigurationError, match=r"model\.start_from must be the path of"):
            tiny_federation(start_from=wrong)


class Tied(TinyClient):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = self.net[4]


def test_tied_parameters_hold_one_value(tmp_path):
    whole = Tied().state_dict()
    fit(tiny_federation(client=Tied(), start_from=save(tmp_path / "w.pt", whole)), rounds=1)
    apart = {**whole, "twin.weight": whole["twin.weight"] + 1}
    with pytest.raises(ConfigurationError, match=r"net\.4\.weight is not what .* shares it with another parameter"):
        fit(tiny_federation(client=Tied(), start_from=save(tmp_path / "w.pt", apart)), rounds=1)


def test_simulations_and_the_command_line_take_it(tmp_path, capsys):
    path = Path(save(tmp_path / "w.pt"))
    given: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "rounds": 1}
    cohort = CohortSampler(clients_per_round=5, malicious_fraction=0.0)
    one = Simulation(TinyClient, FedAvg(), tiny_data(), cohort=cohort, folder="one", start_from=path, **given).run()
    assert one.record["initial_weights_sha256"] == weights_sha256(other_weights())
    assert one.record["config"]["model"]["start_from"] == str(path)
    two = Simulation(TinyClient, FedAvg(), tiny_data(), cohort=cohort, folder="two", start_from="one", **given).run()
    assert two.record["initial_weights_sha256"] == one.record["weights_sha256"]
    model = ["--model.client", "MLP", "--model.client.sizes", "[64, 5, 10]", "--model.aggregator", "FedAvg"]
    data = ["--data", "Digits", "--data.partition", "IID", "--data.partition.num_clients", "20"]
    for verb in ("prepare", "fit"):
        with pytest.raises(SystemExit):
            main([verb, *model, *data, "--model.start_from", str(path), "--trainer.accelerator", "cpu"])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "w.pt is of another model than MLP: " in line
