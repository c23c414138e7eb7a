"""MNIST and its kin: IDX and Parquet files, which way up pictures stand, and what is refused."""

import gzip
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from ranks import on_ranks

from fl_lightning.cli import main
from fl_lightning.data import EMNIST, IID, MNIST, FashionMNIST, TensorSamples
from fl_lightning.data.standardize import Standardize
from fl_lightning.errors import ConfigurationError

SIZES = {"train": 12, "test": 5}
MNISTS = {"train": "train", "test": "t10k"}


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """As the format's page writes it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, names: dict[str, str], *, first: int = 0, compress: bool = False, dot: bool = False) -> None:
    for split, name in names.items():
        n = SIZES[split]
        labels = np.arange(n, dtype=np.uint8) % 10 + first
        for what, array in ((f"{name}-images-idx3-ubyte", pixels(n)), (f"{name}-labels-idx1-ubyte", labels)):
            file = folder / ((what.replace("-idx", ".idx") if dot else what) + (".gz" if compress else ""))
            file.write_bytes(gzip.compress(idx(array)) if compress else idx(array))


def emnist(split: str) -> dict[str, str]:
    return {part: f"emnist-{split}-{part}" for part in SIZES}


def loaded(data: MNIST | EMNIST) -> tuple[TensorSamples, TensorSamples]:
    data.prepare_data()
    data.setup("fit")
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
@pytest.mark.parametrize(("compress", "dot"), [(False, False), (True, False), (False, True)])
def test_reads_idx_files(tmp_path, cls, compress, dot):
    write(tmp_path, MNISTS, compress=compress, dot=dot)
    data = cls(IID(num_clients=2), path=str(tmp_path))
    train, test = loaded(data)
    assert torch.equal(train.inputs, torch.from_numpy(pixels(12)).unsqueeze(1))
    assert torch.equal(test.inputs, torch.from_numpy(pixels(5)).unsqueeze(1))
    assert train.targets.tolist() == [*range(10), 0, 1]
    assert test.targets.tolist() == list(range(5))
    assert len(data.class_names) == 10
    first = train.batch(torch.tensor([3]))[0]
    expected = (torch.from_numpy(pixels(12))[3].double() / 255 - data.standardize.mean) / data.standardize.std
    torch.testing.assert_close(first[0, 0], expected.float(), rtol=0, atol=1e-6)  # two roundings of numbers below 4


def test_ink_is_bright_and_pictures_of_emnist_are_turned_upright(tmp_path):
    upright = np.zeros((1, 28, 28), dtype=np.uint8)
    upright[0, :, 13] = 255  # a one
    upright[0, 0, 10:14] = 255  # its flag, at the upper left
    for part in SIZES:
        (tmp_path / f"emnist-digits-{part}-images-idx3-ubyte").write_bytes(idx(upright.transpose(0, 2, 1)))  # as NIST has it
        (tmp_path / f"emnist-digits-{part}-labels-idx1-ubyte").write_bytes(idx(np.array([1], dtype=np.uint8)))
    for transposed, expected in ((True, upright), (False, upright.transpose(0, 2, 1))):
        data = EMNIST(IID(num_clients=1), path=str(tmp_path), split="digits", transposed=transposed)
        train, _ = loaded(data)
        assert np.array_equal(train.inputs[:, 0].numpy(), expected)
    assert train.batch(torch.tensor([0]))[0].max() > 2  # bright


@pytest.mark.parametrize(
    ("split", "first", "classes", "name"),
    [("byclass", 0, 62, "A"), ("bymerge", 0, 47, "A"), ("balanced", 0, 47, "A"), ("letters", 1, 26, "k"), ("mnist", 0, 10, "")],
)
def test_classes_of_emnist(tmp_path, split, first, classes, name):
    write(tmp_path, emnist(split), first=first)
    data = EMNIST(IID(num_clients=2), path=str(tmp_path), split=split)
    train, _ = loaded(data)
    assert train.targets.tolist() == [*range(10), 0, 1]  # letters' files count from 1
    assert data.task is not None
    assert data.task.num_classes == len(set(data.class_names)) == classes
    assert not name or data.class_names[10] == name


def table(n: int) -> pa.Table:
    rows = []
    for picture in pixels(n):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    return pa.table({"image": rows, "label": [i % 10 for i in range(n)]})


@pytest.mark.parametrize(("cls", "folder"), [(MNIST, "mnist"), (FashionMNIST, "fashion_mnist"), (MNIST, "")])
def test_reads_parquet_files_as_the_hub_has_them(tmp_path, cls, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for split, n in SIZES.items():
        name = f"{split}-00000-of-00001.parquet" if folder else f"{split}.parquet"
        pyarrow.parquet.write_table(table(n), tmp_path / folder / name)
    train, test = loaded(cls(IID(num_clients=2), path=str(tmp_path)))
    assert torch.equal(train.inputs, torch.from_numpy(pixels(12)).unsqueeze(1))
    assert test.targets.tolist() == list(range(5))


def test_reads_from_the_hub(monkeypatch):
    import datasets

    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append(name)
        return datasets.Dataset(table(SIZES[split]))

    monkeypatch.setattr("datasets.load_dataset", load)
    train, _ = loaded(FashionMNIST(IID(num_clients=2)))
    assert torch.equal(train.inputs, torch.from_numpy(pixels(12)).unsqueeze(1))
    assert set(asked) == {"zalando-datasets/fashion_mnist"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"train-images-idx3-ubyte ends after 0 bytes of its header, which takes 16; fetch it again"),
        (idx(pixels(12))[:6], r"train-images-idx3-ubyte ends after 6 bytes of its header, which takes 16"),
        (b"<html>", r"begins with the bytes 3c 68 74 6d; an IDX file .* begins with 00 00 08 03"),
        (idx(pixels(12)[0]), r"begins with the bytes 00 00 08 02"),
        (b"\0\0\x0d\3" + idx(pixels(12))[4:], r"begins with the bytes 00 00 0d 03"),  # float numbers
        (idx(pixels(12))[:-1], r"holds 9407 numbers, but by its header 12 x 28 x 28"),
        (idx(pixels(12)) + b"\0", r"holds 9409 numbers"),
        (idx(pixels(12)[:, :20]), r"holds pictures of 20 x 28, not 28 x 28"),
        (idx(pixels(11)), r"holds 11 pictures, but .*train-labels-idx1-ubyte 12 classes"),
    ],
)
def test_what_is_no_file_of_this_kind_is_named(tmp_path, data, message):
    write(tmp_path, MNISTS)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(ConfigurationError, match=message) as caught:
        MNIST(IID(num_clients=2), path=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_damaged_compression_and_missing_files_are_named(tmp_path):
    write(tmp_path, MNISTS, compress=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for data in (b"no gzip", whole[:-20], whole[:40] + b"\xff" * 40 + whole[80:]):
        file.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"train-images-idx3-ubyte\.gz cannot be read: .*; fetch it again"):
            MNIST(IID(num_clients=2), path=str(tmp_path)).load()
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"holds one of train-images-idx3-ubyte and train-labels-idx1-ubyte"):
        MNIST(IID(num_clients=2), path=str(tmp_path)).prepare_data()
    with pytest.raises(ConfigurationError, match=r"holds no train\.parquet"):
        EMNIST(IID(num_clients=2), path=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("there", ["train", "test"])
def test_a_split_that_is_missing_is_named_as_the_other_is(tmp_path, there):
    write(tmp_path, {there: MNISTS[there]})
    missing = next(name for split, name in MNISTS.items() if split != there)
    data = MNIST(IID(num_clients=2), path=str(tmp_path))
    for read in (data.prepare_data, data.load):
        with pytest.raises(ConfigurationError, match=rf"but no {missing}-images-idx3-ubyte and {missing}-labels-idx1-ubyte"):
            read()
    split = "test" if there == "train" else "train"
    pyarrow.parquet.write_table(table(SIZES[split]), tmp_path / f"{split}.parquet")  # of the other kind, and there
    assert [len(part) for part in loaded(data)] == [12, 5]


@pytest.mark.parametrize(("first", "found"), [(0, "from 0 to 9"), (20, "from 20 to 29")])
def test_letters_that_do_not_count_from_1_to_26_are_refused(tmp_path, first, found):
    write(tmp_path, emnist("letters"), first=first)
    with pytest.raises(
        ConfigurationError, match=rf"train files of letters in .* hold classes {found}, but they count from 1 to"
    ):
        EMNIST(IID(num_clients=2), path=str(tmp_path), split="letters").load()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match=r"data\.split must be one of byclass, .*, got 'all'"):
        EMNIST(IID(num_clients=2), path="x", split="all")  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ConfigurationError, match=r"EMNIST: path must be a text, got None of type NoneType"):
        EMNIST(IID(num_clients=2), path=None).prepare_data()  # pyrefly: ignore[bad-argument-type]


def test_copies_can_be_joined_and_are_differentiated_after_evaluation():
    assert Standardize(0.5, 0.25) == Standardize(0.5, 0.25)
    with torch.inference_mode():
        Standardize(0.1, 0.7)(torch.zeros(1))
    inputs = torch.zeros(2, requires_grad=True)
    Standardize(0.1, 0.7)(inputs).sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, torch.full((2,), 1 / (255 * 0.7)))


FIT = """
seed_everything: 3
trainer: {accelerator: cpu, max_epochs: 2, logger: false}
model:
  client: {class_path: LeNet5, init_args: {num_classes: 47}}
  aggregator: {class_path: Median}
  attacks: [{class_path: PixelTrigger, init_args: {value: 255, target_label: 0}}]
  cohort: {clients_per_round: 2, malicious_fraction: 0.5}
  local: {epochs: 1, batch_size: 4}
data: {class_path: EMNIST, init_args: {path: data, split: balanced, partition: {class_path: IID, init_args: {num_clients: 4}}}}
"""


def trains(folder: str, name: str) -> None:
    os.chdir(folder)
    main(["fit", "--config", "fit.yaml", "--trainer.default_root_dir", name])


def test_two_rounds_have_the_same_bits_on_one_rank_and_on_two(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", emnist("balanced"), compress=True)
    (tmp_path / "fit.yaml").write_text(FIT)
    for world, name in ((1, "one"), (2, "two")):
        on_ranks(world, trains, str(tmp_path), name)
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"], two["rounds"]) == (1, 2, 2)
    assert one["weights_sha256"] == two["weights_sha256"]
