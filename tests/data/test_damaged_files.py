"""Every file that tasks read, with bytes flipped, cut off or overwritten: read, or refused in one line that names it."""

import gzip
import io
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from fl_lightning.data import CIFAR10, IID, DirectorTweets, GloVe, PackedKeys, PhishingTable, Southwest, Twitter
from fl_lightning.errors import ConfigurationError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
WORDS = b"hello 1 2\nyou 3 4\n"


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, kind)
    return stream.getvalue()


def parquet(columns: dict) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), stream, compression="none")
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("glove.2d.txt", WORDS * 20)
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, train=PIXELS, test=PIXELS[:4])
    return stream.getvalue()


IMAGES = parquet({"img": [{"bytes": encoded(kind), "path": None} for kind in ("PNG", "JPEG")] * 2, "label": [0, 1, 2, 3]})
TWEETS = parquet(
    {
        "text": [f"hello \u00e9 {i}" for i in range(60)],
        "user": [f"u{i // 4 if i < 40 else i}" for i in range(60)],
        "sentiment": [0, 4] * 30,
    }
)
TABLE = {"a": list(range(60)), "b": [i / 2 for i in range(60)], "label": [i % 2 for i in range(60)]}
ROWS = "a,\u00e9,label\n".encode() + b"".join(b"%d,%d,%d\n" % (i, i * i, i % 2) for i in range(60))


def words(folder: Path) -> GloVe:
    (folder / "words.txt").write_bytes(WORDS)
    return GloVe(path=str(folder / "words.txt"), dimension=2)


def table(name: str) -> Callable[[Path], object]:
    return lambda folder: PhishingTable(IID(num_clients=2), path=str(folder / name)).load()


def vectors(name: str) -> Callable[[Path], object]:
    return lambda folder: GloVe(path=str(folder / name), dimension=2).rows([["hello"]], 2)


READERS: dict[str, tuple[dict[str, bytes], Callable[[Path], object]]] = {
    "CIFAR10": ({"train.parquet": IMAGES, "test.parquet": IMAGES}, lambda f: CIFAR10(IID(num_clients=2), path=str(f)).load()),
    "Twitter": (
        {"train.parquet": TWEETS, "test.parquet": TWEETS},
        lambda f: Twitter(PackedKeys(num_clients=2), path=str(f), glove=words(f), num_test=2).load(),
    ),
    "PhishingTable, Parquet": ({"table.parquet": parquet(TABLE)}, table("table.parquet")),
    "PhishingTable, CSV": ({"table.csv": ROWS}, table("table.csv")),
    "PhishingTable, compressed": ({"table.csv.gz": gzip.compress(ROWS, mtime=0)}, table("table.csv.gz")),
    "GloVe": ({"vectors.txt": WORDS}, vectors("vectors.txt")),
    "GloVe, compressed": ({"vectors.txt.gz": gzip.compress(WORDS * 20, mtime=0)}, vectors("vectors.txt.gz")),
    "GloVe, archive": ({"vectors.zip": zipped()}, vectors("vectors.zip")),
    "Southwest, arrays": ({"southwest.npz": arrays()}, lambda f: Southwest(path=str(f)).load()),
    "Southwest, pickles": (
        {f"southwest_images_new_{split}.pkl": pickle.dumps(PIXELS[:4], protocol=2) for split in ("train", "test")},
        lambda f: Southwest(path=str(f)).load(),
    ),
    "DirectorTweets": (
        {"train.txt": "hello you \u00e9\n".encode() * 5, "test.txt": b"hello\n"},
        lambda f: DirectorTweets(path=str(f), glove=words(f)).load(),
    ),
}


def damaged(data: bytes, draws: random.Random) -> bytes:
    """Some bytes flipped, the end cut off, or a stretch overwritten."""
    found, at = bytearray(data), draws.randrange(len(data))
    kind = draws.randrange(3)
    if kind == 0:
        for _ in range(draws.choice([1, 3, 20])):
            found[draws.randrange(len(found))] ^= 1 << draws.randrange(8)
    elif kind == 1:
        del found[at:]
    else:
        found[at : at + 50] = b"\xff" * len(found[at : at + 50])
    return bytes(found)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, reader: str) -> None:
    files, load = READERS[reader]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    load(tmp_path)  # undamaged
    name, draws, refused = next(iter(files)), random.Random(reader), 0
    for i in range(40):
        folder = tmp_path / str(i)  # vectors are kept by their path
        folder.mkdir()
        for other, data in files.items():
            (folder / other).write_bytes(damaged(data, draws) if other == name else data)
        try:
            load(folder)
        except ConfigurationError as error:
            assert "\n" not in str(error)  # noqa: PT017  it may as well be read
            refused += 1
    assert refused >= 10
