"""CIFAR-100 and Tiny ImageNet: the Hub's columns and splits, which classes are whose, grey pictures, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fl_lightning.data import CIFAR100, IID, ByKey, Pachinko, TensorSamples, TinyImageNet
from fl_lightning.data.show_data import show
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

SIZES = {"train": 12, "test": 5, "valid": 5}


def images(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def encoded(image: np.ndarray) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def cifar100(n: int) -> pa.Table:
    """Coarse classes of two."""
    fine = [8 * i % 100 for i in range(n)]
    return pa.table({"img": [encoded(i) for i in images(n, 32)], "fine_label": fine, "coarse_label": [f // 40 for f in fine]})


def tiny(n: int) -> pa.Table:
    """The first picture is grey."""
    pictures = list(images(n, 64))
    pictures[0] = pictures[0][..., 0]
    return pa.table({"image": [encoded(i) for i in pictures], "label": [199 - i for i in range(n)]})


def write(folder: Path, make: Any, splits: tuple[str, str], name: str = "{}.parquet") -> None:
    folder.mkdir(exist_ok=True)
    for split in splits:
        pyarrow.parquet.write_table(make(SIZES[split]), folder / name.format(split))


def parts(data: CIFAR100 | TinyImageNet) -> tuple[TensorSamples, TensorSamples]:
    data.prepare_data()
    data.setup("fit")
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


def chw(n: int, side: int) -> torch.Tensor:
    return torch.from_numpy(images(n, side)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("folder", "name"), [("", "{}.parquet"), ("cifar100", "{}-00000-of-00001.parquet")])
def test_cifar100_has_fine_classes_and_coarse_ones_as_keys(tmp_path, folder, name):
    write(tmp_path / folder, cifar100, ("train", "test"), name)
    data = CIFAR100(ByKey(), path=str(tmp_path), augment=False)
    train, test = parts(data)
    assert torch.equal(train.inputs, chw(12, 32))
    assert torch.equal(test.inputs, chw(5, 32))
    assert train.targets.tolist() == [8 * i for i in range(12)]
    assert [train.targets[part].tolist() for part in data.clients] == [[0, 8, 16, 24, 32], [40, 48, 56, 64, 72], [80, 88]]
    assert (len(data.class_names), data.class_names[8], data.class_names[88]) == (100, "bicycle", "tiger")
    assert data.task is not None
    assert data.task.num_classes == 100


def test_cifar100_is_dealt_out_along_its_hierarchy(tmp_path):
    write(tmp_path, cifar100, ("train", "test"))
    data = CIFAR100(Pachinko(num_clients=4), path=str(tmp_path))
    parts(data)
    assert data.sizes.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(("folder", "name"), [("", "{}.parquet"), ("data", "{}-00000-of-00001.parquet")])
def test_tiny_imagenet_is_tested_on_its_valid_split_and_grey_becomes_colour(tmp_path, folder, name):
    write(tmp_path / folder, tiny, ("train", "valid"), name)
    data = TinyImageNet(IID(num_clients=2), path=str(tmp_path))
    train, test = parts(data)
    assert torch.equal(train.inputs[1:], chw(12, 64)[1:])
    assert torch.equal(train.inputs[0], chw(12, 64)[0, :1].expand(3, 64, 64))
    assert len(test) == 5
    assert train.targets.tolist() == [199 - i for i in range(12)]
    assert data.task is not None
    assert data.task.num_classes == 200


@pytest.mark.parametrize(("cls", "make", "side"), [(CIFAR100, cifar100, 32), (TinyImageNet, tiny, 64)])
def test_reads_from_the_hub_augments_training_alone_and_normalises_by_channel(monkeypatch, cls, make, side):
    import datasets

    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset(make(SIZES[split]))

    monkeypatch.setattr("datasets.load_dataset", load)
    data = cls(IID(num_clients=2))
    train, test = parts(data)
    assert set(asked) == {(cls.hub_name, split) for split in cls.splits}
    rows = torch.arange(1, 5)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.standardize.mean, data.standardize.std))
    expected = (chw(12, side)[rows] / 255 - mean) / std
    torch.testing.assert_close(train.batch(rows)[0], expected, rtol=0, atol=1e-5)  # a few roundings of numbers below 4
    assert not torch.equal(train.batch(rows, generator(0, "a"))[0], train.batch(rows)[0])
    assert torch.equal(test.batch(rows, generator(0, "a"))[0], test.batch(rows)[0])
    plain = parts(cls(IID(num_clients=2), augment=False))[0]
    assert torch.equal(plain.batch(rows, generator(0, "a"))[0], train.batch(rows)[0])


@pytest.mark.parametrize(
    ("cls", "table", "message"),
    [
        (CIFAR100, cifar100(2).drop(["coarse_label"]), r"columns img, fine_label; it must have img, fine_label, coarse_label"),
        (
            CIFAR100,
            cifar100(2).set_column(2, "coarse_label", pa.array([None, 1])),
            r"coarse_label of row 0 is None; it must be a whole number",
        ),
        (
            CIFAR100,
            cifar100(2).set_column(1, "fine_label", pa.array([0, 2**63], pa.uint64())),
            r"fine_label of row 1 is 9223372036854775808; it must be a whole number of 64 bits",
        ),
        (
            CIFAR100,
            cifar100(2).set_column(1, "fine_label", pa.array([0, 100])),
            r"labels from 0 to 100, but the task has 100 classes",
        ),
        (TinyImageNet, cifar100(2), r"it must have image, label, as on the Hub"),
        (TinyImageNet, pa.table({"image": [encoded(images(1, 32)[0])], "label": [0]}), r"row 0 has size \(32, 32\)"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, cls, table, message):
    for split in cls.splits:
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(ConfigurationError, match=message):
        cls(IID(num_clients=1), path=str(tmp_path)).setup("fit")


def test_missing_splits_are_named_before_anything_is_decoded(tmp_path):
    write(tmp_path, tiny, ("train", "test"))
    with pytest.raises(ConfigurationError, match=r"holds no valid\.parquet"):
        TinyImageNet(IID(num_clients=2), path=str(tmp_path)).prepare_data()
    with pytest.raises(ConfigurationError, match=r"holds no train\.parquet.*no such folder"):
        CIFAR100(IID(num_clients=2), path=str(tmp_path / "nowhere")).prepare_data()


def named(folder: Path, column: Any = "label") -> str:
    """Tiny ImageNet's files with WordNet names of the classes, as the Hub's have them."""
    names = [f"n{i:08}" for i in range(200)]
    written = json.dumps({"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}})
    write(folder, lambda n: tiny(n).replace_schema_metadata({"huggingface": written}), ("train", "valid"))
    return str(folder)


def test_tiny_imagenets_classes_are_called_as_its_files_and_words_say(tmp_path, capsys):
    data = TinyImageNet(IID(num_clients=2), path=named(tmp_path / "a"))
    parts(data)
    assert (len(data.class_names), data.class_names[199]) == (200, "n00000199")
    words = (
        b"\xef\xbb\xbfn00000199\tgoldfish, Carassius auratus\r\nn00000000\tcrane\r\nn00000001\tcrane, bird\r\nn00000002\r\n\r\n"
    )
    (tmp_path / "a" / "words.txt").write_bytes(words)
    data = TinyImageNet(IID(num_clients=2), path=str(tmp_path / "a"))
    parts(data)
    assert [data.class_names[i] for i in (0, 1, 2, 199)] == ["n00000000", "n00000001", "n00000002", "goldfish"]
    show(data, str(tmp_path / "dealt.svg"))
    assert "n00000002" in capsys.readouterr().out


def test_files_without_names_leave_numbers(tmp_path):
    write(tmp_path / "a", tiny, ("train", "valid"))
    for folder in (str(tmp_path / "a"), named(tmp_path / "b", "another")):
        data = TinyImageNet(IID(num_clients=2), path=folder)
        parts(data)
        assert data.class_names == ()


@pytest.mark.parametrize("make", [Path.mkdir, lambda file: file.write_bytes(b"\xff\xfe\x00n")], ids=["folder", "bytes"])
def test_words_that_are_no_text_are_refused(tmp_path, make):
    make(Path(named(tmp_path / "a")) / "words.txt")
    with pytest.raises(ConfigurationError, match=r"words\.txt cannot be read as text: .*; mend it, or move it away"):
        parts(TinyImageNet(IID(num_clients=2), path=str(tmp_path / "a")))
