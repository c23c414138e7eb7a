"""A run by one call: the same as by the command line, and nothing that was given is changed."""

import functools
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, TQDMProgressBar
from ranks import on_ranks
from tiny import TinyClient, tiny_data

from fl_lightning import (
    BackdoorMetrics,
    CohortSampler,
    ConfigurationError,
    Federation,
    FlipRates,
    LastCheckpoint,
    LocalTraining,
    Simulation,
)
from fl_lightning.aggregators import FedAvg, Median, SparseFed, TrimmedMean
from fl_lightning.attacks import PixelTrigger
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.cli import main
from fl_lightning.data import IID, Digits, Dirichlet
from fl_lightning.models import MLP

ANY_CLASS: Any = TinyClient
PLAIN = Callback()
COHORT = CohortSampler(clients_per_round=5, malicious_fraction=0.2)


def simulation(folder, client=None, aggregator=None, **kwargs):
    """Two rounds of a tiny module that the simulation makes."""
    client, aggregator = client or functools.partial(TinyClient, lr=0.2), aggregator or TrimmedMean(alpha=0.25)
    cohort = CohortSampler(clients_per_round=4, malicious_fraction=0.0)
    given: dict[str, Any] = {"cohort": cohort, "rounds": 2, "accelerator": "cpu", **kwargs}
    return Simulation(client, aggregator, tiny_data(), folder=folder, **given)


def digits(folder):
    return Simulation(
        functools.partial(MLP, sizes=[64, 16, 10]),
        TrimmedMean(alpha=0.2),
        Digits(Dirichlet(num_clients=20, alpha=1.0, min_samples=2)),
        folder=folder,
        attacks=[PixelTrigger(target_label=7)],
        cohort=COHORT,
        rounds=2,
        seed=3,
        local=LocalTraining(batch_size=16),
        accelerator="cpu",
        logger=False,
    )


def test_it_leaves_what_the_command_line_leaves_with_the_same_bits(tmp_path, capsys):
    result = digits("by_call").run()
    options = """
        --seed_everything 3 --trainer.default_root_dir by_command --trainer.accelerator cpu --trainer.logger false
        --trainer.max_epochs 2 --data Digits --data.partition Dirichlet --data.partition.num_clients 20
        --data.partition.alpha 1.0 --data.partition.min_samples 2 --model.client MLP --model.client.sizes [64,16,10]
        --model.aggregator TrimmedMean --model.aggregator.alpha 0.2 --model.attacks+ PixelTrigger
        --model.attacks.target_label 7 --model.cohort.clients_per_round 5 --model.local.batch_size 16"""
    main(["fit", *options.split()])
    expected = json.loads((tmp_path / "by_command" / "run.json").read_text())
    assert result.record.keys() == expected.keys() - {"sha256"}  # the file's own digest
    assert result.record["weights_sha256"] == expected["weights_sha256"] == weights_sha256(result.client)
    assert (result.acc, result.asr) == (expected["acc"], expected["asr"])
    assert {p.name for p in (tmp_path / "by_call").iterdir()} == {p.name for p in (tmp_path / "by_command").iterdir()}
    assert result.history["round"].tolist() == [1, 2]
    assert result.history["acc"].tolist()[-1] == result.acc
    assert not result.client.training
    assert weights_sha256(Federation.load("by_call")) == expected["weights_sha256"]
    # Settings of parts that have classes are a configuration, by which the command line does the same.
    config = yaml.safe_load((tmp_path / "by_call" / "config.yaml").read_text())
    (tmp_path / "again.yaml").write_text(
        yaml.safe_dump({**config, "trainer": {**config["trainer"], "default_root_dir": "again"}})
    )
    main(["fit", "--config", "again.yaml"])
    assert json.loads((tmp_path / "again" / "run.json").read_text())["weights_sha256"] == expected["weights_sha256"]


def test_nothing_of_lightnings_is_shown_and_nothing_of_the_callers_is_changed(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")]
    filters, draws = list(warnings.filters), torch.get_rng_state()
    simulation("run").run()
    shown = capfd.readouterr()
    for remark in ("GPU available", "Warning", "litlogger", "max_epochs", "distributed"):
        assert remark not in shown.out + shown.err
    assert "round 2/2: acc" in shown.err
    assert "Results: run/run.json" in shown.out
    assert [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")] == levels
    assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), draws)
    assert "PL_GLOBAL_SEED" not in os.environ
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    assert {"run.json", "metrics.jsonl", "config.yaml", "last.ckpt", "tensorboard", "csv"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


def digest(folder, **kwargs):
    return simulation(folder, logger=False, enable_progress_bar=False, **kwargs).run().record["weights_sha256"]


def written(folder):
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


def test_initial_weights_follow_from_the_seed_where_the_simulation_makes_the_module():
    torch.manual_seed(1)
    first = digest("a")
    torch.manual_seed(2)
    assert digest("b") == first
    assert digest("c", seed=1) != first
    assert "initial_weights" not in written("a")
    task = written("a")["data"]["init_args"]["task"]
    assert (task["train"]["samples"], task["test"]["samples"], task["num_classes"]) == (207, 50, 3)
    assert task["train"]["targets"] != task["test"]["targets"]
    one, other = TinyClient(lr=0.2), TinyClient(lr=0.2)
    before = weights_sha256(one)
    assert digest("d", client=one) != digest("e", client=other)
    assert weights_sha256(one) == before
    assert "not by the seed" in written("d")["initial_weights"]


def test_what_was_given_can_be_given_again():
    rule, data = SparseFed(k=50), tiny_data()
    found = []
    for seed, folder in ((0, "a"), (1, "b"), (0, "c")):
        given = {"folder": folder, "rounds": 2, "seed": seed, "accelerator": "cpu", "logger": False}
        run = Simulation(TinyClient, rule, data, cohort=CohortSampler(clients_per_round=4), **given)
        found.append(run.run().record["weights_sha256"])
    assert found[0] == found[2] != found[1]
    assert not rule.memory
    assert (data.task, data.seed) == (None, 0)


def test_it_goes_on_where_it_was(tmp_path):
    expected = digest("whole", rounds=4, aggregator=SparseFed(k=50))
    assert digest("parts", rounds=2, aggregator=SparseFed(k=50)) != expected
    parts = simulation("parts", rounds=4, aggregator=SparseFed(k=50), logger=False)
    result = parts.run(resume=True)
    assert result.record["weights_sha256"] == expected
    assert result.history["round"].tolist() == [1, 2, 3, 4]
    with pytest.raises(ConfigurationError, match=r"k is 50 there and 60 here"):
        simulation("parts", rounds=5, aggregator=SparseFed(k=60), logger=False).run(resume=True)


class Wide(TinyClient):
    """Its width and first weights are settings."""

    def __init__(self, width: int = 37, *, zeros: bool = False, lr: float = 0.1) -> None:
        super().__init__(norm=False, lr=lr)
        self.net[0], self.net[4] = torch.nn.Linear(6, width), torch.nn.Linear(width, 3)
        if zeros:
            torch.nn.init.zeros_(self.get_parameter("net.4.weight"))


def wide(*args: Any, **kwargs: Any):
    return lambda: Wide(*args, **kwargs)


class Makes:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self):
        return Wide(lr=self.lr)

    def another(self):
        return Wide(lr=self.lr)


@pytest.mark.parametrize(
    ("first", "other", "difference"),
    [
        (wide(64), wide(32), r"another model than Wide: net\.0\.weight is \(64, 6\) in the checkpoint and \(32, 6\) here"),
        (Wide, wide(5), r"another model than Wide"),
        (Wide(64), Wide(32), r"another model than Wide: net\.0\.weight is \(64, 6\)"),
        (wide(lr=0.1), wide(lr=0.2), r"client\.makes\.init_args\.lr is 0\.1 there and 0\.2 here"),
        (wide(), wide(zeros=True), r"client\.makes\.norm is"),
        (Makes(0.1), Makes(0.2), r"client\.of\.init_args\.lr is 0\.1 there and 0\.2 here"),
        (Makes(0.1).another, Makes(0.2).another, r"client\.makes\.init_args\.lr is 0\.1 there and 0\.2 here"),
        (functools.partial(wide, 37)(), functools.partial(wide, 37, lr=0.3)(), r"lr is 0\.1 there and 0\.3 here"),
    ],
    ids=range(8),
)
def test_another_model_does_not_go_on(first, other, difference):
    short = {"logger": False, "enable_progress_bar": False}
    simulation("run", client=first, rounds=1, **short).run()
    assert simulation("run", client=first, rounds=2, **short).run(resume=True).record["rounds"] == 2
    with pytest.raises(ConfigurationError, match=difference) as caught:
        simulation("run", client=other, rounds=3, **short).run(resume=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_other_settings_of_functions_do_not_go_on():
    def digest_with(rate, rounds, **kwargs):
        halved = {"server_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, rate)}
        return digest("run", rounds=rounds, **halved, **kwargs)

    digest_with(0.5, 1)
    parts = {"logger": False, "server_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)}
    with pytest.raises(ConfigurationError, match=r"server_scheduler.*optimizer, 1, rate\)' there and .*1, 0\.9\)' here"):
        simulation("run", rounds=2, **parts).run(resume=True)


def test_a_function_that_draws_from_elsewhere_goes_on():
    draws = torch.Generator()

    def makes():
        draws.seed()
        client = TinyClient()
        client.get_parameter("net.0.weight").data.normal_(generator=draws)
        return client

    digest("run", client=makes, rounds=1)
    assert "norm" not in written("run")["model"]["client"]["makes"]
    assert simulation("run", client=makes, rounds=2, logger=False).run(resume=True).record["rounds"] == 2


def test_rounds_that_are_done_already():
    expected = digest("run", rounds=2)
    again = simulation("run", rounds=2, logger=False).run(resume=True)
    assert (again.record["weights_sha256"], again.record["finished"]) == (expected, True)
    with pytest.raises(ConfigurationError, match=r"number of rounds, is 1, and the checkpoint is of round 2; give 2 or more"):
        simulation("run", rounds=1, logger=False).run(resume=True)


def test_a_module_that_is_made_by_the_seed_is_not_said_to_be_drawn_by_chance(caplog):
    class Seeds(TinyClient):
        def __init__(self) -> None:
            torch.manual_seed(3)
            super().__init__()

    torch.seed()
    for client in (TinyClient, Seeds):
        digest("run", client=client, rounds=1)
    assert "torch was not seeded" not in caplog.text
    digest("run", client=TinyClient(), rounds=1)
    assert "torch was not seeded" in caplog.text


def on_two(folder):
    result = simulation(folder, logger=False, devices="auto").run()
    return result.record["weights_sha256"], result.record["world_size"], len(result.history)


def test_a_launchers_ranks_are_taken_and_all_see_the_result(tmp_path):
    expected = digest("one")
    assert on_ranks(2, on_two, str(tmp_path / "two")) == [(expected, 2, 2)] * 2


def test_own_callbacks_stand_in_for_standard_ones(tmp_path):
    own = [BackdoorMetrics(), LastCheckpoint(every_n_rounds=5)]
    trainer: Any = simulation("run", callbacks=own).trainer()
    assert sum(isinstance(callback, BackdoorMetrics) for callback in trainer.callbacks) == 1
    assert [callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)] == [own[1]]
    bars = simulation("run", callbacks=[TQDMProgressBar()]).trainer().progress_bar_callback
    assert type(bars) is TQDMProgressBar


@pytest.mark.parametrize("given", [{"enable_checkpointing": False, "logger": False}, {"barebones": True}])
def test_a_run_may_leave_its_record_alone(tmp_path, given):
    assert simulation("bare", **given).run().record["finished"]
    assert {p.name for p in (tmp_path / "bare").iterdir()} == {"run.json", "metrics.jsonl", "config.yaml", "training.lock"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"round": 3}, r"no argument round; did you mean rounds"),
        ({"max_epochs": 3}, r"has rounds in place of max_epochs=3"),
        ({"default_root_dir": "x"}, r"has folder in place of default_root_dir"),
        ({"rounds": 0}, r"rounds must be a whole number of at least 1, got 0"),
        ({"rounds": 2.5}, r"rounds must be a whole number of at least 1, got 2\.5"),
        ({"seed": -1}, r"seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, r"seed must be a whole number of at least 0, got 1\.5"),
        ({"seed": 2**32}, r"must lie in \[0, 2\*\*32\)"),
        ({"cohort": 10}, r"cohort must be a CohortSampler"),
        ({"callbacks": BackdoorMetrics()}, r"callbacks must be a list"),
        ({"attacks": PixelTrigger(target_label=1)}, r"attacks must be a list of attacks"),
        ({"client": functools.partial(ANY_CLASS, 1)}, r"client is called without arguments, which .*TinyClient.* cannot be"),
        ({"client": lambda size: None}, r"client is called without arguments.*give functools\.partial"),
        ({"client": torch.nn.Linear(6, 3)}, r"client must be a LightningModule"),
        ({"client": 3}, r"client must be a LightningModule"),
        ({"aggregator": FedAvg}, r"aggregator must be a rule, such as TrimmedMean"),
        ({"attacks": [Median()]}, r"attacks must be a list of attacks"),
    ],
)
def test_mistakes_are_refused_at_once(given, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        simulation("run", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {}["none"], r"<lambda> makes no module, as it raises KeyError: 'none'; give a function"),
        (lambda: None, r"<lambda> returns None of type NoneType, which is no LightningModule; have it return one"),
        (lambda: ANY_CLASS, r"<lambda> returns <class .*TinyClient'> of type type"),
        (lambda: torch.nn.Linear(2, 2), r"returns Linear\(.* of type Linear, which is no LightningModule"),
        (lambda: Wide(-1), r"makes no module, as it raises RuntimeError: .*negative"),
    ],
    ids=range(5),
)
def test_a_function_that_makes_no_module_is_refused_in_one_line(make, message, tmp_path):
    for mistaken in (simulation("run", client=make).run, simulation("run", client=make).config):
        with pytest.raises(ConfigurationError, match=message) as caught:
            mistaken()
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([FlipRates], r"got <class .*FlipRates'> of type type; give an object made of it: FlipRates\(\.\.\.\)"),
        (None, r"\[\] for none, got None"),
        ([None], r"callbacks must be a list of callbacks.*got None"),
        ([FlipRates(), FlipRates()], r"FlipRates is there 2 times; name it once"),
        ([EarlyStopping("val/acc"), EarlyStopping("val/acc", patience=9)], r"EarlyStopping is there 2 times"),
        ([PLAIN, PLAIN], r"Callback is there 2 times"),
        ([LearningRateMonitor()], r"LearningRateMonitor has no logger .* trainer\.logger is False; .* such as CSVLogger"),
    ],
    ids=range(7),
)
def test_callbacks_that_cannot_be_are_refused_in_one_line(given, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message) as caught:
        simulation("run", callbacks=given, logger=False).run()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_numbers_may_be_numpys():
    assert simulation("run", seed=np.int64(3), rounds=np.int32(4)).config()["seed_everything"] == 3
    with pytest.raises(ConfigurationError, match=r"folder must be a path"):
        simulation(None)


def test_mistakes_that_a_run_finds_are_one_line_and_leave_no_checkpoint(tmp_path):
    with pytest.raises(ConfigurationError, match=r"clients_per_round = 40"):
        simulation("run", cohort=CohortSampler(clients_per_round=40), logger=False).run()
    with pytest.raises(ConfigurationError, match=r"trainer: .*precision"):
        simulation("run", precision="12").run()
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_data_have_the_simulations_seed():
    with pytest.raises(ConfigurationError, match=r"data have seed 5, the simulation 0"):
        Simulation(TinyClient, FedAvg(), Digits(IID(num_clients=3), seed=5), folder="run")
    with pytest.raises(ConfigurationError, match=r"from_datasets"):
        Simulation(TinyClient, FedAvg(), [1, 2], folder="run")  # pyrefly: ignore  no data module
