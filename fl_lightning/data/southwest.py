"""Southwest Airlines planes: the edge-case images of "Attack of the Tails", planes that attackers label as trucks.

H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee, D. Papailiopoulos, "Attack of the
Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084. The images are
those of the authors' repository, https://github.com/ksreenivasan/OOD_Federated_Learning: 196 training and 49 test
photos, each in its four rotations by quarter turns, which are consecutive entries.

Differs from the paper: one training photo is also among the test photos; `drop_leak` takes it out of the test images. So no
image that an attacker or, where edge cases are shared, a benign client may train on is one that the attack is measured on.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.cifar10 import normalize, read_parquet
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.data.download import cached
from fl_lightning.data.edge_pool import LoadedPool
from fl_lightning.errors import ConfigurationError, in_one_line

URL = "https://raw.githubusercontent.com/ksreenivasan/OOD_Federated_Learning/HEAD/saved_datasets/"
"""Folder of the authors' pickles."""

PICKLES = {"train": "southwest_images_new_train.pkl", "test": "southwest_images_new_test.pkl"}
COUNTS = {"train": 784, "test": 196}
ROTATIONS = 4
AIRPLANE = 0


class Southwest(LoadedPool):
    """Edge-case pool for CIFAR-10: 784 training and 192 test images, uint8 (n, 3, 32, 32), true class airplane (0).

    Args:
        path: a folder that holds `train.parquet` and `test.parquet` (columns `img` and `label`), `southwest.npz`
            (arrays `train` and `test`, uint8 (n, 32, 32, 3)), or the authors' two pickles. None fetches the pickles
            from the authors' repository, once per machine, into `$XDG_CACHE_HOME/fl_lightning/southwest`, by default
            `~/.cache/fl_lightning/southwest`.
        drop_leak: whether test photos that are also training photos are left out; there is one, so 192 of 196 test
            images remain.

    Raises:
        ConfigurationError: on first use, if the images are not there, cannot be fetched or are not what they should be.
    """

    label = AIRPLANE
    group_size = ROTATIONS

    def __init__(self, *, path: str | None = None, drop_leak: bool = True) -> None:
        self.path = path
        self.drop_leak = drop_leak

    def prepare(self) -> None:
        """Fetch the images unless they are here; concurrent calls are safe, as the file appears whole or not at all."""
        if self.path is None and not _cached().is_file():
            _write_npz(_cached(), {split: _download(URL + name) for split, name in PICKLES.items()})

    def load(self) -> tuple[TensorSamples, TensorSamples]:
        train, test = _read(Path(self.path) if self.path is not None else _cached().parent)
        if self.drop_leak:
            test = test[~leaked(train, test)]
        return _samples(train), _samples(test)


def leaked(train: Tensor, test: Tensor) -> Tensor:
    """Which test images show a photo of the training images.

    A photo is a group of four consecutive images; if one of them equals a training image bit for bit, all four leak.

    Args:
        train: (n, 3, h, w) uint8.
        test: (4m, 3, h, w) uint8.

    Returns:
        (4m,) bool.
    """
    known = {image.tobytes() for image in train.numpy()}
    seen = torch.tensor([image.tobytes() in known for image in test.numpy()], dtype=torch.bool)
    return seen.view(-1, ROTATIONS).any(dim=1).repeat_interleave(ROTATIONS)


def load_array(data: bytes) -> np.ndarray:
    """Read a pickled NumPy array without running whatever else the pickle may ask for.

    Args:
        data: a pickle of protocol 0 to 4.

    Raises:
        pickle.UnpicklingError: if the pickle refers to anything beyond what rebuilds an array, or is none.
    """
    array = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()  # the encoding is that of arrays from Python 2
    if not isinstance(array, np.ndarray):
        raise pickle.UnpicklingError(f"holds a {type(array).__name__} instead of a NumPy array")
    return array


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` is to a pickled array: protocols 0 to 2 write bytes as text and name only this encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encodes text as {encoding}, which no pickled array does")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no pickled array needs") from None


def _cached() -> Path:
    return cached("southwest", "southwest.npz")


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """Training and test images, (n, 3, 32, 32) uint8, from whichever kind of file the folder holds."""
    if (folder / "train.parquet").is_file():
        return _airplanes(folder, "train"), _airplanes(folder, "test")
    npz = folder / "southwest.npz"
    pickles = [folder / name for name in PICKLES.values()]
    if npz.is_file():
        with _explained(f"{npz} is not as it should be", "delete it"), np.load(npz, allow_pickle=False) as arrays:
            train, test = (_checked(arrays[split], f"{npz}, array {split}") for split in PICKLES)
    elif all(file.is_file() for file in pickles):
        train, test = (_unpickled(file.read_bytes(), str(file)) for file in pickles)
    else:
        raise ConfigurationError(
            f"pool.path {folder} holds neither train.parquet and test.parquet, nor southwest.npz, nor "
            f"{' and '.join(PICKLES.values())}; give the folder of one of these, or leave path out to download "
            "the images"
        )
    return _channels_first(train), _channels_first(test)


def _airplanes(folder: Path, split: str) -> Tensor:
    images, targets = read_parquet(folder, split)
    if len(images) % ROTATIONS or bool((targets != AIRPLANE).any()):
        raise ConfigurationError(
            f"{folder / split}.parquet holds {len(images)} images of the classes {targets.unique().tolist()}; it must "
            f"hold four rotations each of planes, class {AIRPLANE}; give the folder of the Southwest images"
        )
    return images


def _unpickled(data: bytes, name: str) -> np.ndarray:
    with _explained(f"{name} is not a pickled array of images", f"fetch it again from {URL}"):
        return _checked(load_array(data), name)


@contextmanager
def _explained(wrong: str, remedy: str) -> Iterator[None]:
    """Say what is wrong with a file: damaged ones raise what they like."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{wrong} ({in_one_line(error)}); {remedy} or give another path") from error


def _checked(images: np.ndarray, name: str) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or len(images) % ROTATIONS:
        raise ConfigurationError(
            f"{name} holds {images.dtype} of shape {images.shape}; it must be uint8 (n, 32, 32, 3), n divisible "
            f"by {ROTATIONS}; give another path"
        )
    return images


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _samples(images: Tensor) -> TensorSamples:
    targets = torch.full((len(images),), AIRPLANE)
    return TensorSamples(images, targets, augment=crop_and_flip, prepare=normalize)


def _download(url: str) -> np.ndarray:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read()
    except OSError as error:  # URLError, HTTPError and timeouts alike
        raise ConfigurationError(
            f"pool.path is not set and {url} cannot be fetched ({error}); check the network, or set pool.path to a "
            "folder with train.parquet and test.parquet, southwest.npz or the two pickles"
        ) from error
    images = _unpickled(data, url)
    count = next(COUNTS[split] for split, name in PICKLES.items() if url.endswith(name))
    if len(images) != count:
        raise ConfigurationError(
            f"{url} holds {len(images)} images instead of {count}: the authors changed it; set pool.path to a folder "
            "with the original images"
        )
    return images


def _write_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write beside the final place and move there, so that no reader ever meets half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.savez_compressed(stream, train=arrays["train"], test=arrays["test"])
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
