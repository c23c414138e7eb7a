"""FEMNIST: LEAF's JSON and the Hub's Parquet, who wrote what, which way round ink is, and what is refused."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from ranks import on_ranks

from fl_lightning.cli import main
from fl_lightning.data import FEMNIST, IID, ByKey, TensorSamples
from fl_lightning.data.femnist import held_out
from fl_lightning.errors import ConfigurationError

WRITERS = {"f1000_02": 7, "f0000_14": 12, "f0103_45": 5}
"""Samples for training of each, not in the order of their names."""


def pixels(writer: str, n: int) -> np.ndarray:
    return np.random.default_rng([int(writer[1:5]), n]).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def leaf(folder: Path, split: str, writers: dict[str, int], file: str = "all_data_0_niid_0_keep_0_train_9.json") -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    data = {
        name: {"x": (pixels(name, n).reshape(n, 784) / 255.0).tolist(), "y": [i % 62 for i in range(n)]}
        for name, n in writers.items()
    }
    content = {"users": list(writers), "num_samples": list(writers.values()), "user_data": data}
    (folder / split / file).write_text(json.dumps(content))


def whole(folder: Path) -> Path:
    leaf(folder, "train", WRITERS)
    leaf(folder, "test", dict.fromkeys(WRITERS, 2))
    return folder


def parts(data: FEMNIST) -> tuple[TensorSamples, TensorSamples]:
    data.prepare_data()
    data.setup("fit")
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


def test_reads_leafs_files_and_every_writer_is_a_client(tmp_path):
    data = FEMNIST(ByKey(), path=str(whole(tmp_path)))
    train, test = parts(data)
    expected = np.concatenate([pixels(name, n) for name, n in WRITERS.items()])
    assert torch.equal(train.inputs[:, 0], torch.from_numpy(expected))  # the bytes that LEAF divided
    assert len(test) == 6
    assert data.sizes.tolist() == [WRITERS[name] for name in sorted(WRITERS)]
    first = data.client(0)  # f0000_14
    assert isinstance(first, TensorSamples)
    assert torch.equal(first.inputs[:, 0], torch.from_numpy(pixels("f0000_14", 12)))
    assert first.targets.tolist() == list(range(12))
    assert (data.class_names[10], data.class_names[53]) == ("A", "r")


def test_writers_of_several_files_are_joined(tmp_path):
    leaf(tmp_path, "train", {"f0000_14": 4}, "all_data_1.json")
    leaf(tmp_path, "train", {"f0001_02": 3, "f0002_02": 0}, "all_data_0.json")
    leaf(tmp_path, "test", {"f0000_14": 1})
    data = FEMNIST(ByKey(), path=str(tmp_path))
    parts(data)
    assert data.sizes.tolist() == [4, 3]  # one without samples is no client


def test_ink_is_dark_as_published_and_bright_where_that_is_asked_for(tmp_path):
    whole(tmp_path)
    published, inverted = (parts(FEMNIST(ByKey(), path=str(tmp_path), invert=invert))[0] for invert in (False, True))
    every = torch.arange(len(published))
    plain = published.batch(every)[0]
    torch.testing.assert_close(plain, published.inputs.float() / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(inverted.batch(every)[0], 1 - plain, rtol=0, atol=1e-6)
    assert torch.equal(published.inputs, inverted.inputs)  # triggers are written into what is in the file


def table(writers: dict[str, int]) -> pa.Table:
    rows: dict[str, list[Any]] = {"image": [], "writer_id": [], "hsf_id": [], "character": []}
    for name, n in writers.items():
        for i, picture in enumerate(pixels(name, n)):
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "PNG")
            for column, value in zip(rows, ({"bytes": stream.getvalue(), "path": None}, name, 0, i % 62), strict=True):
                rows[column].append(value)
    return pa.table(rows)


def test_reads_parquet_files_and_holds_out_a_share_of_each_writer(tmp_path):
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table({"f0000_14": 12, "f0103_45": 1}), tmp_path / "data" / "train-00000-of-00002.parquet")
    pyarrow.parquet.write_table(table({"f1000_02": 8}), tmp_path / "data" / "train-00001-of-00002.parquet")
    for seed in (0, 1):
        data = FEMNIST(ByKey(), path=str(tmp_path), test_fraction=0.25, seed=seed)
        train, test = parts(data)
        assert data.sizes.tolist() == [9, 1, 6]  # one sample alone is for training
        assert len(test) == 5
        together = torch.cat([train.inputs, test.inputs])[:, 0].flatten(1).tolist()
        every = np.concatenate([pixels("f0000_14", 12), pixels("f0103_45", 1), pixels("f1000_02", 8)]).reshape(21, -1).tolist()
        assert sorted(together) == sorted(every)
    usual = FEMNIST(ByKey(), path=str(tmp_path))
    assert len(parts(usual)[1]) == 2  # a tenth of 12 and of 8, rounded


def test_what_is_held_out_depends_on_the_writer_alone():
    alone, among = held_out(["b"] * 9, 0.3), held_out(["a", *["b"] * 9, "c", "c"], 0.3)
    assert torch.equal(among[1:10], alone)
    assert (int(alone.sum()), among[0].item()) == (3, False)


def test_reads_from_the_hub(monkeypatch):
    import datasets

    def load(name: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("flwrlabs/femnist", "train")
        return datasets.Dataset(table({"f0000_14": 10}))

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(parts(FEMNIST(IID(num_clients=2)))[0]) == 9


GOOD = {"x": [[0.5] * 784], "y": [3]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_copy_of_a_file_would_count_twice_and_is_refused(tmp_path, split):
    (original,) = (whole(tmp_path) / split).glob("*.json")
    (copy := original.with_name("copy of it.json")).write_bytes(original.read_bytes())
    data = FEMNIST(ByKey(), path=str(tmp_path))
    for read in (data.prepare_data, data.load):
        with pytest.raises(
            ConfigurationError, match=r"all_data.*json is a copy of .*; remove one|copy of it\.json is a copy of"
        ):
            read()
    copy.write_text(json.dumps({"users": [], "num_samples": [], "user_data": {}}).ljust(original.stat().st_size))
    assert len(parts(data)[0]) == sum(WRITERS.values()) or split == "test"  # as long, and another


def test_leafs_split_leaves_out_users_of_one_sample_and_keeps_them_without_samples(tmp_path):
    """As LEAF writes both splits: `user_data` has more users than `users`, and what they had is in neither."""
    for split in ("train", "test"):
        leaf(tmp_path, split, WRITERS, "a.json")
        file = tmp_path / split / "a.json"
        content = json.loads(file.read_text())
        content["user_data"]["f0001_00"] = {"x": [], "y": []}
        content["num_samples"] = [2 * n for n in content["num_samples"]]  # of both splits, as in its Reddit
        file.write_text(json.dumps(content))
    data = FEMNIST(ByKey(), path=str(tmp_path))
    assert [len(part) for part in parts(data)] == [sum(WRITERS.values())] * 2
    assert len(data.sizes) == len(WRITERS)


def of_one(**changed: Any) -> dict[str, Any]:
    return {"users": ["u"], "user_data": {"u": {**GOOD, **changed}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a\.json cannot be read: .*; fetch it again, make it anew by LEAF's preprocess\.sh"),
        ("[1]", r"a\.json has no users and user_data"),
        ({"users": ["u"], "user_data": {}}, r"a\.json, user 'u': x and y must be lists of the same length"),
        ({"users": [3], "user_data": {"3": GOOD}}, r"user 3: x and y must be lists"),
        (of_one(y=[3, 4]), r"user 'u': x and y must be lists of the same length"),
        (of_one(y=[True]), r"user 'u': y must hold whole numbers"),
        (of_one(y=["A"]), r"user 'u': y must hold whole numbers"),
        (of_one(y=[2**63]), r"user 'u': y must hold whole numbers"),
        (of_one(x=[[0.5] * 783]), r"user 'u': x must hold 784 numbers in \[0, 1\]"),
        (of_one(x=[[0.5] * 783 + [1.5]]), r"784 numbers in \[0, 1\]"),
        (of_one(x=[[float("nan")] * 784]), r"784 numbers in \[0, 1\]"),
        (of_one(x=[["a"] * 784]), r"784 numbers in \[0, 1\]"),
        ({"users": [], "user_data": {}}, r"train hold no samples"),
        ({"users": ["u", "v", "u"], "user_data": {"u": GOOD, "v": GOOD}}, r"a\.json: users names 'u' more than once; fetch it"),
        ({"users": ["u"], "user_data": {"u": GOOD, "v": GOOD}}, r"a\.json: user_data has 'v', whom users does not name; fetch"),
        (of_one(y=[62]), r"labels from 62 to 62, but the task has 62 classes"),
    ],
)
def test_what_is_no_file_of_leafs_is_named(tmp_path, content, message):
    leaf(tmp_path, "test", {"f0000_14": 1})
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigurationError, match=message) as caught:
        FEMNIST(ByKey(), path=str(tmp_path)).setup("fit")
    assert "\n" not in str(caught.value)


def test_missing_files_wrong_columns_and_settings_are_named(tmp_path):
    (tmp_path / "ones").mkdir()
    with pytest.raises(ConfigurationError, match=r"holds no train\.parquet"):
        FEMNIST(ByKey(), path=str(tmp_path)).prepare_data()
    pyarrow.parquet.write_table(table({"f0000_14": 1}).drop(["writer_id"]), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=r"it must have image, writer_id, character"):
        FEMNIST(ByKey(), path=str(tmp_path)).load()
    leaf(tmp_path, "train", WRITERS)
    with pytest.raises(ConfigurationError, match=r"holds no test/\*\.json"):
        FEMNIST(ByKey(), path=str(tmp_path)).prepare_data()
    whole(tmp_path)
    with pytest.raises(ConfigurationError, match=r"data\.test_fraction = 0\.2, but LEAF's files .* are split already"):
        FEMNIST(ByKey(), path=str(tmp_path), test_fraction=0.2).prepare_data()
    pyarrow.parquet.write_table(table({"f0000_14": 1, "f0001_41": 1}), tmp_path / "ones" / "train.parquet")
    with pytest.raises(
        ConfigurationError, match=r"the test data have no samples; .* raise data\.test_fraction: nobody has enough"
    ):
        FEMNIST(ByKey(), path=str(tmp_path / "ones")).setup("fit")
    every: list[Any] = [0, 1.0, -0.1, float("nan"), True, "0.1"]
    for wrong in every:
        with pytest.raises(ConfigurationError, match=r"test_fraction"):
            FEMNIST(ByKey(), test_fraction=wrong)


FIT = """
seed_everything: 3
trainer: {accelerator: cpu, max_epochs: 2, logger: false}
model:
  client: {class_path: MLP, init_args: {sizes: [784, 8, 62]}}
  aggregator: {class_path: FedAvg}
  attacks: [{class_path: PixelTrigger, init_args: {value: 0, target_label: 1}}]
  cohort: {clients_per_round: 2, malicious_fraction: 0.5}
  local: {epochs: 1, batch_size: 4}
data: {class_path: FEMNIST, init_args: {path: data, partition: {class_path: ByKey}}}
"""


def trains(folder: str, name: str) -> None:
    os.chdir(folder)
    main(["fit", "--config", "fit.yaml", "--trainer.default_root_dir", name])


def test_two_rounds_have_the_same_bits_on_one_rank_and_on_two(tmp_path):
    whole(tmp_path / "data")
    (tmp_path / "fit.yaml").write_text(FIT)
    for world, name in ((1, "one"), (2, "two")):
        on_ranks(world, trains, str(tmp_path), name)
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"], two["rounds"]) == (1, 2, 2)
    assert one["weights_sha256"] == two["weights_sha256"]
