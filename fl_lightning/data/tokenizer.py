"""Texts as token numbers: cut into tokens once, and made into a model's inputs batch by batch.

As with word vectors (`GloVe`), samples hold row numbers, 0 for padding, so that whatever inserts words into texts works on
both. What a tokenizer puts around a text, such as [CLS] and [SEP], comes with the batch: a trigger at the start of a text
stands behind the former, and cannot push out the latter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.checked import with_checked_arguments
from fl_lightning.data.download import cached
from fl_lightning.data.glove import PADDING
from fl_lightning.errors import ConfigurationError, in_one_line
from fl_lightning.files.replacing import replacing
from fl_lightning.modules.extras import extra

NOTHING = -1
"""What stands behind the end of a text in a batch."""

AT_ONCE = 10_000
"""Texts that a tokenizer is given at a time."""

VERSION = 1
"""Of what is kept in the cache; to be raised where `Tokenizer.rows` comes to give something else."""


@with_checked_arguments
@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers, and how many tokens of a text count.

    Row 0 stands for padding, row 1 + t for token t. Called with rows (b, L) it gives token numbers (b, L') int64, -1 behind the
    end of each text, with what the tokenizer puts around a text, and no longer than the longest of the batch.

    Attributes:
        name: on the Hugging Face Hub, mostly that of a model, or a local folder.
        max_tokens: the most that a text may have, with what is put around it, at least 4; longer ones are cut.
        revision: of a name on the Hub; null for its main branch.
        whole: batches have all L tokens, whatever their texts have, and nothing is put around those: for targets (n, L).

    Raises:
        ConfigurationError: on first use, if the tokenizer cannot be had.

    Example:
        >>> tokenizer = Tokenizer("distilbert/distilbert-base-uncased", max_tokens=6)
        >>> tokenizer(tokenizer.rows(["a good film", "bad"])).tolist()
        [[101, 1037, 2204, 2143, 102], [101, 2919, 102, -1, -1]]
    """

    name: str
    max_tokens: int = 128
    revision: str | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            raise ConfigurationError(f"max_tokens must be at least 4, got {self.max_tokens}; 128 is usual")

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that are put before a text, and those behind it."""
        return ([], []) if self.whole else _around(self)

    @property
    def length(self) -> int:
        """L, the tokens of a text's own."""
        before, behind = self.around
        return self.max_tokens - len(before) - len(behind)

    @property
    def unknown(self) -> int | None:
        """The row of all that the vocabulary does not have; None where there is nothing of the kind."""
        number = _tokenizer(self).unk_token_id
        return None if number is None else number + 1

    @property
    def end(self) -> int:
        """The token that says that a text ends.

        Raises:
            ConfigurationError: the tokenizer has none.
        """
        number = _tokenizer(self).eos_token_id
        if number is None:
            raise ConfigurationError(
                f"data.tokenizer {self.name!r} has no token for the end of a text, after which a model could stop; give "
                "another one"
            )
        return number

    @property
    def vocabulary(self) -> dict[int, str]:
        """What stands for every row number; nothing for padding."""
        return {PADDING: "", **{number + 1: token for token, number in _tokenizer(self).get_vocab().items()}}

    def numbers(self, text: str) -> list[int]:
        """The row numbers of a text, all of it."""
        return [number + 1 for number in self.pieces([text])[0]]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, without what the tokenizer puts around them."""
        tokenizer, found = _tokenizer(self), []
        for first in range(0, len(texts), AT_ONCE):
            part = list(texts[first : first + AT_ONCE])
            found += tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return found

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Row numbers of texts, cut or padded on the right to one length.

        A text without any token becomes one of an end of text, or of an unknown token: networks read one at least.

        Args:
            texts: n texts.

        Returns:
            (n, L) int32.
        """
        length, tokenizer = self.length, _tokenizer(self)
        rows = np.full((len(texts), length), PADDING, dtype=np.int32)
        known = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.sep_token_id, 0)
        empty = next(number for number in known if number is not None)
        for row, numbers in zip(rows, self.pieces(texts), strict=True):
            numbers = numbers[:length] or [empty]
            row[: len(numbers)] = np.asarray(numbers) + 1
        return torch.from_numpy(rows)

    def kept_rows(self, texts: Sequence[str]) -> Tensor:
        """The same, of length L, worked out once per machine: kept under the digest of the texts and of the tokenizer."""
        digest = hashlib.sha256(f"{VERSION} {self.length} {_content(self)}\n".encode())
        for text in texts:
            encoded = text.encode(errors="surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        file = cached("tokens", f"{digest.hexdigest()}.npy")
        try:
            rows = np.load(file, allow_pickle=False)
            if rows.shape == (len(texts), self.length) and rows.dtype == np.int32:
                return torch.from_numpy(rows)
        except (OSError, ValueError, EOFError):  # not there, or damaged
            pass
        rows = self.rows(texts)
        with suppress(OSError):  # a folder that cannot be written costs the time and nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, rows.nbytes) as written:
                np.save(written, rows.numpy())
        return rows

    def extremes(self, rows: Tensor) -> Tensor:
        """Which of texts (n, L), n at least 1, is the longest, and which has the highest token: (2,) int64, on the CPU."""
        parts = rows.split(AT_ONCE)  # so that what is worked out of many texts stays small
        lengths = torch.cat([(part != PADDING).sum(1) for part in parts])
        highest = torch.cat([part.amax(1) for part in parts])
        return torch.stack([lengths.argmax(), highest.argmax()]).cpu()

    def __call__(self, rows: Tensor) -> Tensor:
        """Token numbers of a batch of texts.

        Args:
            rows: (b, L) int32 or int64 row numbers, on any device.

        Returns:
            (b, L') int64 on the same device, -1 behind the end; L' is that of the longest text.
        """
        before, behind = (torch.tensor(of, dtype=torch.int64, device=rows.device) for of in self.around)
        lengths = (rows != PADDING).sum(1)
        longest = rows.shape[1] if self.whole else int(lengths.max()) if len(rows) else 0
        own = rows[:, :longest].long() - 1
        padded = own.new_full((len(rows), len(behind)), NOTHING)
        tokens = torch.cat([before.expand(len(rows), -1), own, padded], dim=1)
        ends = len(before) + lengths[:, None] + torch.arange(len(behind), device=rows.device)
        return tokens.scatter(1, ends, behind.expand(len(rows), -1))


@cache
def _tokenizer(settings: Tokenizer) -> Any:
    """The tokenizer, read once."""
    transformers = extra("transformers", "data.tokenizer")
    try:
        return transformers.AutoTokenizer.from_pretrained(settings.name, revision=settings.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"data.tokenizer {settings.name!r} cannot be had ({in_one_line(error)}); check the name, the revision and the "
            "network, or give a local folder"
        ) from error


@cache
def _around(settings: Tokenizer) -> tuple[list[int], list[int]]:
    """What a tokenizer puts around a text, found by what it does to one."""
    tokenizer = _tokenizer(settings)
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    places = range(len(whole) - len(plain) + 1)
    first = next((i for i in places if whole[i : i + len(plain)] == plain), None)
    if not plain or first is None:
        raise ConfigurationError(
            f"data.tokenizer {settings.name!r} makes {whole} of the text 'a', and {plain} without special tokens, which "
            "says nothing of what it puts around a text; give another one"
        )
    before, behind = whole[:first], whole[first + len(plain) :]
    if settings.max_tokens <= len(before) + len(behind):
        raise ConfigurationError(
            f"data.max_tokens is {settings.max_tokens}, but data.tokenizer {settings.name!r} puts {len(before) + len(behind)} "
            "around a text, which leaves nothing of it; raise it"
        )
    return before, behind


@cache
def _content(settings: Tokenizer) -> str:
    """Digest of what decides which tokens a text has."""
    tokenizer = _tokenizer(settings)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__} {content}".encode()).hexdigest()
