"""GloVe word vectors, frozen: words become row numbers once, and row numbers become vectors batch by batch.

J. Pennington, R. Socher, C. D. Manning, "GloVe: Global Vectors for Word Representation", EMNLP 2014,
https://aclanthology.org/D14-1162. The vectors are Stanford's, https://nlp.stanford.edu/projects/glove.

Vectors are part of the data, not of the model. Nobody trains them, so a model that held them would copy, send and save up to
80 million numbers a round for nothing, and its rows would have to agree with the numbering of the data's words. As it is, a
batch of row numbers is looked up where images are normalised, `TensorSamples.prepare`.
"""

from __future__ import annotations

import codecs
import gzip
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.checked import with_checked_arguments
from fl_lightning.data.download import cached, check_sha256, fetch
from fl_lightning.errors import ConfigurationError, in_one_line

URL = "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip"
"""GloVe 6B on the Hugging Face Hub: 400,000 lower-case words of Wikipedia 2014 and Gigaword 5; 822 MB."""

SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
DIMENSIONS = (50, 100, 200, 300)
"""Dimensions that GloVe 6B comes in."""

PADDING = 0
UNKNOWN = 1


@with_checked_arguments
@dataclass(frozen=True)
class GloVe:
    """Word vectors from a text file of Stanford's format, which also is the vocabulary: words in the order of the file.

    Row 0 stands for padding, row 1 for every word that the file does not have, row 2 + i for its i-th word. Called with rows
    (b, L), it gives (b, L, dimension + 1) float32: the word's vector, zeros for an unknown word, and a last entry that is 1
    for a word, known or not, and 0 for padding, where all other entries are 0 as well.

    Two of equal settings are equal and share one table in memory, so data and edge-case pools are given the same settings.
    The table is read on first use and takes 4 * (dimension + 1) bytes per word: 322 MB for all of GloVe 6B in 200 dimensions.

    Attributes:
        path: a text file with a word and its numbers per line, separated by blanks, as it is, compressed (`.gz`), or in
            Stanford's archives (`.zip`, of which the file for `dimension` is read). None fetches GloVe 6B from the Hugging
            Face Hub, once per machine, into `$XDG_CACHE_HOME/fl_lightning/glove`, by default `~/.cache/fl_lightning/glove`.
        dimension: numbers per word, at least 1; GloVe 6B has 50, 100, 200 and 300.
        num_words: how many words are read from the start of the file, at least 1; GloVe's come most frequent first.

    Raises:
        ConfigurationError: on first use, if the file is not there, cannot be fetched or is not what it should be.

    Example:
        >>> glove = GloVe(path="glove.6B.50d.txt", dimension=50)
        >>> rows = glove.rows([["the", "zzyzx"], []], length=3)
        >>> rows.tolist(), glove(rows).shape
        ([[2, 1, 0], [0, 0, 0]], torch.Size([2, 3, 51]))
    """

    path: str | None = None
    dimension: int = 200
    num_words: int = 400_000

    def __post_init__(self) -> None:
        for name, value in (("dimension", self.dimension), ("num_words", self.num_words)):
            if value < 1:
                raise ConfigurationError(f"glove.{name} must be at least 1, got {value}")
        if self.path is None and self.dimension not in DIMENSIONS:
            raise ConfigurationError(
                f"glove.dimension is {self.dimension}, but GloVe 6B comes in {DIMENSIONS}; use one of these or give a path"
            )

    def prepare(self) -> None:
        """Fetch the vectors unless they are here, or see that there is a file; concurrent calls are safe."""
        if self.path is None:
            fetch(URL, _archive(), partial(check_sha256, SHA256), "set glove.path to a file of word vectors")
        elif not Path(self.path).is_file():
            raise ConfigurationError(
                f"glove.path {self.path} is no file; give a file of word vectors, such as glove.6B.200d.txt, or leave path "
                "out to download GloVe 6B"
            )

    def rows(self, texts: Sequence[Sequence[str]], length: int) -> Tensor:
        """Row numbers of words, cut or padded on the right to one length.

        Args:
            texts: n texts, each a sequence of words.
            length: L, at least 1.

        Returns:
            (n, L) int32.
        """
        numbers = _read(self)[0]
        rows = np.full((len(texts), length), PADDING, dtype=np.int32)
        for row, words in zip(rows, texts, strict=True):
            row[: len(words)] = [numbers.get(word, UNKNOWN) for word in words[:length]]
        return torch.from_numpy(rows)

    @property
    def vocabulary(self) -> dict[int, str]:
        """The word of every row number; nothing for padding."""
        return {PADDING: "", UNKNOWN: "<unknown>", **{row: word for word, row in _read(self)[0].items()}}

    def __call__(self, rows: Tensor) -> Tensor:
        """Vectors of a batch of words.

        Args:
            rows: (b, L) int32 or int64 row numbers, on any device.

        Returns:
            (b, L, dimension + 1) float32 on the same device; the last entry tells words (1) from padding (0).
        """
        return F.embedding(rows, _table(self, rows.device))


@cache
def _table(glove: GloVe, device: torch.device) -> Tensor:
    """The vectors on `device`, copied there once."""
    return _read(glove)[1].to(device)


@cache
def _read(glove: GloVe) -> tuple[Mapping[str, int], Tensor]:
    """Row number per word, and vectors (2 + words, dimension + 1) float32 on the CPU."""
    glove.prepare()
    file = Path(glove.path) if glove.path is not None else _archive()
    numbers: dict[str, int] = {}
    vectors = np.zeros((UNKNOWN + 1 + glove.num_words, glove.dimension + 1), dtype=np.float32)
    row = UNKNOWN
    try:
        for row, line in enumerate(islice(_lines(file, glove.dimension), glove.num_words), start=UNKNOWN + 1):
            word, *entries = line.rsplit(b" ", glove.dimension)  # from the right, as a few words of GloVe 840B hold blanks
            if len(entries) < glove.dimension or (row == UNKNOWN + 1 and b" " in word):
                raise ConfigurationError(
                    f"{file}, line {row - UNKNOWN}: {line.count(b' ')} numbers follow the word, but glove.dimension is "
                    f"{glove.dimension}; set it to what the file holds, or give another path"
                )
            vectors[row, :-1] = entries
            numbers.setdefault(word.decode(errors="replace"), row)
    except ConfigurationError:
        raise
    except Exception as error:  # damaged archives raise what they like
        raise ConfigurationError(
            f"{file} cannot be read as word vectors (near line {row - UNKNOWN}: {in_one_line(error)}); give another "
            "path or fetch it again"
        ) from error
    if not numbers:
        raise ConfigurationError(f"{file} holds no word vectors; give another path or fetch it again")
    vectors.resize((row + 1, glove.dimension + 1), refcheck=False)  # in place: a file may hold fewer words than were asked for
    if not np.isfinite(vectors).all():
        wrong = int((~np.isfinite(vectors)).any(axis=1).argmax())
        raise ConfigurationError(f"{file}, line {wrong - UNKNOWN}: a number is not finite; give another path or fetch it again")
    vectors[UNKNOWN:, -1] = 1
    return numbers, torch.from_numpy(vectors)


def _archive() -> Path:
    return cached("glove", "glove.6B.zip")


def _lines(file: Path, dimension: int) -> Iterator[bytes]:
    """The lines of a text file, which may be compressed or one of an archive's."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            member = next((name for name in archive.namelist() if name.endswith(f".{dimension}d.txt")), None)
            if member is None:
                raise ConfigurationError(
                    f"{file} holds {archive.namelist()}, of which none ends with .{dimension}d.txt; set glove.dimension to "
                    "one that there is, or give another path"
                )
            with archive.open(member) as stream:
                yield from _stripped(stream)
    else:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield from _stripped(stream)


def _stripped(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, and the first without a byte order mark, which Windows' editors write."""
    for number, line in enumerate(stream):
        yield (line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).rstrip()
