"""The trained client out of a run's folder, and predictions."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import CLASSES, FEATURES, TinyClient, fit, tiny_data, tiny_federation, tiny_trainer
from torch import nn

from fl_lightning import ConfigurationError, Federation, LastCheckpoint, RunRecord
from fl_lightning.aggregators import FLTrust
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.configuration import build
from fl_lightning.data import RootSet


def trained(folder: Path, config: dict | None = None, **kwargs) -> Federation:
    federation = tiny_federation(**kwargs)
    callbacks = [LastCheckpoint(), *([] if config is None else [RunRecord(config)])]
    fit(federation, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True)
    return federation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a module that was made in Python, so without a configuration."""
    folder = tmp_path_factory.mktemp("run")
    trained(folder)
    return folder


def test_a_run_of_the_command_line_gives_its_client_from_the_folder_alone(tmp_path):
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    data = ["--data", "Digits", "--data.partition", "IID", "--data.partition.num_clients", "20"]
    model = ["--model.client", "MLP", "--model.client.sizes", "[64, 5, 10]", "--model.aggregator", "FedAvg"]
    cli = build(["fit", *root, "--trainer.accelerator", "cpu", *data, *model])
    cli.trainer.fit(cli.model, cli.datamodule)
    before = torch.get_rng_state()
    for path in (tmp_path, str(tmp_path / "last.ckpt"), tmp_path / "config.yaml"):
        client = Federation.load(path)
        assert type(client).__name__ == "MLP"
        assert not client.training
        assert weights_sha256(client) == weights_sha256(cli.model.client)
    assert torch.equal(torch.get_rng_state(), before)
    (tmp_path / "config.yaml").unlink()  # the checkpoint knows it too
    assert client(torch.zeros(2, 64)).shape == (2, 10)


def test_a_module_made_in_python_is_given(folder):
    client = TinyClient()
    assert Federation.load(folder, client=client) is client
    assert weights_sha256(client) == weights_sha256(trained(folder / "again").client)
    with pytest.raises(ConfigurationError, match=r"says what the client's class is; give it: Federation.load\(path, client="):
        Federation.load(folder)
    with pytest.raises(ConfigurationError, match=r"client must be a module, such as Net\(\)"):
        Federation.load(folder, client=TinyClient)  # pyrefly: ignore  a class is none


def test_another_model_is_refused_with_names_and_shapes(folder):
    client = TinyClient()
    client.net[0] = nn.Linear(FEATURES, 8)
    client.net[3] = nn.LayerNorm(37)
    with pytest.raises(
        ConfigurationError, match=r"another model than TinyClient: net\.0\.weight is \(37, 6\) in the"
    ) as caught:
        Federation.load(folder, client=client)
    assert "net.3.weight is not in the checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_cannot_be_made_any_more_is_one_line(tmp_path):
    trained(tmp_path, config={"model": {"client": {"class_path": "__main__.Gone", "init_args": {}}}})
    with pytest.raises(ConfigurationError, match=r"__main__\.Gone, cannot be made \(.*; give it") as caught:
        Federation.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_in_the_weights_is_found(folder, tmp_path):
    whole = (folder / "last.ckpt").read_bytes()
    weight = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]["client.net.4.weight"]
    at = whole.index(weight.numpy().tobytes())
    for name, content in {
        "flipped.ckpt": whole[: at + 7] + bytes([whole[at + 7] ^ 1]) + whole[at + 8 :],
        "cut.ckpt": whole[: len(whole) // 2],
        "empty.ckpt": b"",
        "text.ckpt": b"no checkpoint",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=rf"{name} (cannot be read: it )?is damaged"):
            Federation.load(tmp_path / name, client=TinyClient())


def test_what_is_no_run_is_refused(folder, tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no last\.ckpt in "):
        Federation.load(tmp_path, client=TinyClient())
    for path in (None, 3, b"x"):
        with pytest.raises(ConfigurationError, match=r"path must be that of a run's folder or of a checkpoint, got"):
            Federation.load(path)  # pyrefly: ignore  no path
    with pytest.raises(ConfigurationError, match=r"aaa\.\.\.: File name too long; give the folder of a run"):
        Federation.load("a" * 5000)
    with pytest.raises(ConfigurationError, match=r"there is no file .*nowhere"):
        Federation.load(tmp_path / "nowhere")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match=r"other\.ckpt is not a checkpoint of a federation"):
        Federation.load(tmp_path / "other.ckpt")
    torch.save({"federation": {}, "state_dict": {}, "callbacks": {"x": Path()}}, tmp_path / "program.ckpt")
    with pytest.raises(ConfigurationError, match=r"program\.ckpt holds more than tensors and plain data"):
        Federation.load(tmp_path / "program.ckpt")
    with pytest.raises(ConfigurationError, match=r"Federation\.load\(path\) gives the trained client module"):
        Federation.load_from_checkpoint(str(folder / "last.ckpt"))


def predictions(folder: str, **kwargs) -> list[list[list[float]]]:
    trainer: L.Trainer = tiny_trainer(devices=kwargs.pop("devices", 1))
    found: Any = trainer.predict(
        tiny_federation(**kwargs), tiny_data(root=RootSet(samples=10)), ckpt_path=f"{folder}/last.ckpt"
    )
    return [logits.tolist() for logits in found]


def predictions_on_ranks(folder: str) -> list[list[list[float]]]:
    return predictions(folder, devices=4)


def test_predict_gives_logits_batch_by_batch_of_which_ranks_have_their_own(folder):
    client, inputs = Federation.load(folder, client=TinyClient()), tiny_data()
    inputs.setup("predict")
    with torch.no_grad():
        expected = [client(batch[0]).tolist() for batch in inputs.predict_dataloader()]
    assert predictions(str(folder)) == expected
    assert (len(expected), len(expected[0]), len(expected[0][0])) == (7, 8, CLASSES)
    assert on_ranks(4, predictions_on_ranks, str(folder)) == [expected[rank::4] for rank in range(4)]


def test_predict_takes_a_rule_that_trusts_samples_of_its_own(folder):
    assert len(predictions(str(folder), aggregator=FLTrust())) == 7
