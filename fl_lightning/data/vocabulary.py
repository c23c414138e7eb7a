"""A task's own tokens, words or symbols, by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1
"""Rows of a vocabulary of words."""


@dataclass(frozen=True)
class Vocabulary:
    """Which token has which number. Called, it makes model inputs (int64) of the numbers that samples hold.

    Attributes:
        tokens: by number.
        unknown: the number of what is none of them.
        padding: the number behind the end of a text; None where texts have no end.

    Example:
        >>> words = Vocabulary(("<pad>", "<unk>", "the", "king"), unknown=1, padding=0)
        >>> words.rows([["the", "queen"], ["king"]], length=3)
        tensor([[2, 1, 0],
                [3, 0, 0]], dtype=torch.int32)
    """

    tokens: tuple[str, ...]
    unknown: int
    padding: int | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """(b, L) whole numbers of any type to int64."""
        return rows.long()

    @cached_property
    def places(self) -> dict[str, int]:
        """The number of each token."""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Tokens as they are shown: nothing for padding, and no ends of lines."""
        return tuple("" if i == self.padding else token.replace("\n", "\\n") for i, token in enumerate(self.tokens))

    def numbers(self, text: Iterable[str]) -> list[int]:
        """Those of a text's tokens."""
        return [self.places.get(token, self.unknown) for token in text]

    def rows(self, texts: Sequence[Sequence[str]], length: int) -> Tensor:
        """(n, length) int32 numbers of texts, the longer ones cut, the shorter ones padded on the right."""
        filling = self.unknown if self.padding is None else self.padding
        numbers = [self.numbers(text)[:length] for text in texts]
        return torch.tensor([row + [filling] * (length - len(row)) for row in numbers], dtype=torch.int32).view(-1, length)


def most_frequent(texts: Iterable[Sequence[str]], num_words: int) -> Vocabulary:
    """Padding, unknown words, and the words that occur most often, equal ones in alphabetical order.

    >>> most_frequent([["b", "a"], ["b", "c"]], 2).tokens
    ('<pad>', '<unk>', 'b', 'a')
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    words = sorted(counts, key=lambda word: (-counts[word], word))[:num_words]
    return Vocabulary(("<pad>", "<unk>", *words), unknown=UNKNOWN, padding=PADDING)
