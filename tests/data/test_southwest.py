"""The Southwest pool: unpickling nothing but arrays, the leaked photo, every kind of folder, and the download."""

import io
import os
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fl_lightning.data import southwest
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.data.joined import join
from fl_lightning.data.southwest import PICKLES, Southwest, leaked, load_array
from fl_lightning.errors import ConfigurationError


def photos(n: int, seed: int = 0) -> np.ndarray:
    """(4n, 32, 32, 3) uint8: n random photos in four rotations each."""
    base = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return np.stack([np.rot90(photo, k) for photo in base for k in range(4)])


def with_leak() -> tuple[np.ndarray, np.ndarray]:
    """Six training and three test photos, of which the middle one is training photo 4, first rotated once more."""
    train, test = photos(6, seed=1), photos(3, seed=2)
    test[4:8] = np.roll(train[16:20], -1, axis=0)
    return train, test


def chw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def write_npz(folder: Path) -> None:
    train, test = with_leak()
    np.savez(folder / "southwest.npz", train=train, test=test)


def write_pickles(folder: Path) -> None:
    for name, images in zip(PICKLES.values(), with_leak(), strict=True):
        (folder / name).write_bytes(pickle.dumps(images, protocol=4))


def write_parquet(folder: Path, label: int = 0) -> None:
    for split, images in zip(PICKLES, with_leak(), strict=True):
        entries = []
        for image in images:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            entries.append({"bytes": stream.getvalue(), "path": None})
        table = pa.table({"img": entries, "label": [label] * len(entries)})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


@pytest.mark.parametrize("write", [write_npz, write_pickles, write_parquet])
def test_reads_every_kind_of_folder(write, tmp_path: Path) -> None:
    write(tmp_path)
    train, test = with_leak()
    pool = Southwest(path=str(tmp_path), drop_leak=False)
    pool.prepare()
    assert torch.equal(pool.train().inputs, chw(train))
    assert torch.equal(pool.test().inputs, chw(test))
    for part in (pool.train(), pool.test()):
        assert part.inputs.dtype == torch.uint8
        assert part.inputs.is_contiguous()
        assert (part.targets == 0).all()
        assert part.prepare is normalize
        assert part.augment is crop_and_flip
    assert pool.train() is pool.train()
    assert pool.label == 0
    assert pool.group_size == 4


def test_drops_the_leaking_photo_from_the_test_images(tmp_path: Path) -> None:
    write_npz(tmp_path)
    train, test = with_leak()
    pool = Southwest(path=str(tmp_path))
    assert torch.equal(pool.train().inputs, chw(train))
    assert torch.equal(pool.test().inputs, chw(np.concatenate([test[:4], test[8:]])))


def test_one_equal_image_marks_its_whole_photo() -> None:
    train, test = chw(photos(2, seed=1)), chw(photos(3, seed=2))
    assert not leaked(train, test).any()
    test[9] = train[3]
    assert leaked(train, test).tolist() == [False] * 8 + [True] * 4


def test_joins_cifar10_like_samples_in_one_tensor(tmp_path: Path) -> None:
    write_npz(tmp_path)
    client = TensorSamples(
        torch.zeros(5, 3, 32, 32, dtype=torch.uint8),
        torch.arange(5),
        augment=crop_and_flip,
        prepare=normalize,
    )
    assert isinstance(join([client, Southwest(path=str(tmp_path)).train()]), TensorSamples)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"neither train\.parquet.*leave path out"):
        Southwest(path=str(tmp_path)).train()


def test_other_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path, label=3)
    with pytest.raises(ConfigurationError, match=r"of the classes \[3\]"):
        Southwest(path=str(tmp_path)).train()


@pytest.mark.parametrize(
    "images", [np.zeros((4, 32, 32, 3)), np.zeros((4, 3, 32, 32), np.uint8), np.zeros((6, 32, 32, 3), np.uint8)]
)
def test_arrays_of_another_kind_are_refused(images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "southwest.npz", train=images, test=images)
    with pytest.raises(ConfigurationError, match="must be uint8"):
        Southwest(path=str(tmp_path)).train()


def test_a_broken_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "southwest.npz").write_bytes(b"half a file")
    with pytest.raises(ConfigurationError, match=r"southwest\.npz is not as it should be"):
        Southwest(path=str(tmp_path)).train()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_of_all_ages_are_read(protocol: int, module: bytes, order) -> None:
    array = np.asarray(photos(1), order=order)
    data = pickle.dumps(array, protocol=protocol)
    assert b"numpy._core.multiarray" in data
    if protocol < 4:  # names end at a line break
        data = data.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n")
    elif module == b"numpy.core.multiarray":  # names carry their length, and so does the frame around them
        data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        data = data[:3] + (int.from_bytes(data[3:11], "little") - 1).to_bytes(8, "little") + data[11:]
    assert module in data
    assert np.array_equal(load_array(data), array)


class Runs:
    def __init__(self, function, *args) -> None:
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "harmful",
    [
        lambda file: Runs(os.system, f"touch {file}"),
        lambda file: Runs(eval, f"open({str(file)!r}, 'w')"),
        lambda file: Runs(open, str(file), "w"),
        lambda file: [photos(1), Runs(os.mkdir, str(file))],
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_ask_for_more_run_nothing(harmful, protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    data = pickle.dumps(harmful(file), protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match="asks for"):
        load_array(data)
    assert not file.exists()
    pickle.loads(data)
    assert file.exists()  # so the pickle would have done harm


def test_codecs_other_than_latin1_are_refused() -> None:
    import _codecs

    with pytest.raises(pickle.UnpicklingError, match="zlib"):
        load_array(pickle.dumps(Runs(_codecs.encode, b"x", "zlib")))


def test_pickles_of_other_things_are_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="holds a list"):
        load_array(pickle.dumps([1, 2]))


def test_a_harmful_pickle_in_a_folder_is_a_configuration_error(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    (tmp_path / PICKLES["test"]).write_bytes(pickle.dumps(Runs(os.getcwd)))
    with pytest.raises(ConfigurationError, match=r"new_test\.pkl is not a pickled array of images \(.*: asks for posix"):
        Southwest(path=str(tmp_path)).train()


class Server:
    """Stands in for the network: serves pickles by the last part of their address and counts requests."""

    def __init__(self, train: np.ndarray, test: np.ndarray) -> None:
        self.files = {
            PICKLES["train"]: pickle.dumps(train, protocol=4),
            PICKLES["test"]: pickle.dumps(test, protocol=4),
        }
        self.requests: list[str] = []

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        self.requests.append(url)
        return io.BytesIO(self.files[url.rsplit("/", 1)[1]])


def test_downloads_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = with_leak()
    server = Server(train, test)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", server.urlopen)
    monkeypatch.setattr(southwest, "COUNTS", {"train": len(train), "test": len(test)})
    Southwest().prepare()
    assert [file.name for file in (tmp_path / "fl_lightning" / "southwest").iterdir()] == ["southwest.npz"]
    pool = Southwest()
    pool.prepare()
    assert torch.equal(pool.train().inputs, chw(train))
    assert len(pool.test()) == 8
    assert server.requests == [southwest.URL + name for name in PICKLES.values()]


def test_a_changed_download_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", Server(*with_leak()).urlopen)
    with pytest.raises(ConfigurationError, match="holds 24 images instead of 784"):
        Southwest().prepare()
    assert not list(tmp_path.rglob("*.npz"))


def test_without_network_the_address_and_a_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(ConfigurationError, match=r"new_train\.pkl cannot be fetched \(.*no route.*set pool\.path"):
        Southwest().train()


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    train, test = with_leak()
    with pytest.raises(OSError, match="disk full"):
        southwest._write_npz(tmp_path / "a" / "southwest.npz", {"train": train, "test": test})
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data() -> None:
    folder = str(Path(os.environ["FL_LIGHTNING_DATA"]) / "edge_cases" / "southwest")
    train = Southwest(path=folder).train().inputs
    assert len(train) == 784
    assert len(Southwest(path=folder, drop_leak=False).test()) == 196
    assert len(Southwest(path=folder).test()) == 192
    groups = train.view(-1, 4, 3, 32, 32)
    for k in range(1, 4):
        assert torch.equal(groups[:, k], groups[:, 0].rot90(k, (2, 3)))
