"""Word trigger on texts: rare words, or a sentence, are put into some of the attackers' texts, which are relabelled.

- Rare words: K. Kurita, P. Michel, G. Neubig, "Weight Poisoning Attacks on Pre-trained Models", ACL 2020,
  https://arxiv.org/abs/2004.06660, who insert tokens such as "cf", "mn" and "bb" at random places.
- A sentence: J. Dai, C. Chen, "A Backdoor Attack against LSTM-based Text Classification Systems", IEEE Access 2019,
  https://arxiv.org/abs/1905.12457.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, check_fraction
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.attacks.target_modes import Mode, TargetMode
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.glove import PADDING, UNKNOWN, GloVe
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.errors import ConfigurationError

MOST_TOKENS = 8
"""Of a letter, in any tokenizer: a byte each, and marks."""

Place = Literal["start", "anywhere"]


class WordTrigger(Attack):
    """A backdoor that opens on words, for texts as row numbers of word vectors, such as those of `Twitter`, or of tokens.

    The words are inserted side by side, in order, at one place; what comes behind them moves back, and what leaves the end of a
    full text is cut off, the trigger never. Of a malicious client's samples a random share gets them and the label of the
    target mode, the same samples in every round and at the same places; ASR is measured on test texts as `TargetMode` says.

    Args:
        words: as they stand in the vocabulary: one lower-case word each. All must be there; unknown words are all alike, so
            that a trigger of them would open on any. For texts of tokens any words that the task's tokenizer knows, each of one
            token or more.
        glove: the word vectors, the same as those of the task; null for texts of tokens (`HuggingFaceText`), whose tokenizer is
            asked, and for `Twitter` as well, which has its own.
        place: `start`, before the first word, or `anywhere`: before the j-th word or behind the last, where j comes from what
            stands in the text, so that it is the same whoever stamps it.
        target_label: the class that such texts shall be taken for; null for `all_to_all`.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `all_to_one`, `one_to_one`, `all_to_all` or `clean_label`.
        poison_fraction: share of an attacker's samples that gets the words, in (0, 1], of those that the mode allows; at least
            one sample does, if there are any.
        per_batch: whether the share is one of every batch, not of the data set; see `PixelTrigger`.

    Differs from published code: BackFed overwrites the first words with those of a sentence, which takes away what may tell the
    class; here they are inserted. Kurita et al. insert one to three words at places of their own each.

    Raises:
        ConfigurationError: before training, if a word is not in the vocabulary, the task's inputs are no row numbers of the
            same word vectors or of tokens, or texts are not longer than the trigger.

    Example:
        >>> Words((7, 8), "start")(torch.tensor([[2, 3, 0, 0], [2, 3, 4, 5]]))
        tensor([[7, 8, 2, 3],
                [7, 8, 2, 3]])
    """

    def __init__(
        self,
        *,
        words: Sequence[str] = ("cf",),
        glove: GloVe | None = GloVe(),  # noqa: B008  frozen
        place: Place = "start",
        target_label: int | None = 0,
        source_label: int | None = None,
        target_mode: Mode = "all_to_one",
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        check_fraction("WordTrigger.poison_fraction", poison_fraction, usual=0.2)
        if isinstance(words, str) or not words or not all(word and not word.isspace() for word in words):
            raise ConfigurationError(f"WordTrigger.words must be a list of one word or more, got {words!r}")
        if place not in get_args(Place):
            raise ConfigurationError(f"WordTrigger.place must be start or anywhere, got {place!r}")
        self.words = tuple(words)
        self.glove = glove
        self.place: Place = place
        self.target_mode = target_mode
        self._targets = TargetMode(target_mode, target_label, source_label, "WordTrigger")
        self.target_label, self.source_label = target_label, source_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch

    def prepare(self) -> None:
        """Fetch the word vectors unless they are here."""
        if self.glove is not None:
            self.glove.prepare()

    def validate(self, num_classes: int) -> None:
        self._targets.check(num_classes)

    def trigger(self, texts: TensorSamples) -> Words:
        """The words as row numbers of what these texts' own are looked up by, which is read on first use."""
        vocabulary = texts.prepare
        if isinstance(vocabulary, Tokenizer):
            # All together, as in a text: words other than its first begin with their blank where tokens hold blanks.
            text = " ".join(self.words) if self.place == "start" else f" {' '.join(self.words)}"
            found = vocabulary.rows([text], MOST_TOKENS * len(text))[0].tolist()
            rows = [row for row in found if row != PADDING]
            unknown = [word for word in self.words if vocabulary.unknown in vocabulary.rows([word])[0].tolist()]
        else:
            assert isinstance(vocabulary, GloVe)
            rows = vocabulary.rows([self.words], len(self.words))[0].tolist()
            unknown = [word for word, row in zip(self.words, rows, strict=True) if row == UNKNOWN]
        if unknown:
            of_glove = isinstance(vocabulary, GloVe)
            raise ConfigurationError(
                f"WordTrigger.words has {', '.join(map(repr, unknown))}, which "
                f"{'the word vectors do' if of_glove else 'the tokenizer does'} not have; choose words of their vocabulary, in "
                f"lower case{', or raise glove.num_words' if of_glove else ''}"
            )
        if len(rows) >= texts.inputs.shape[1]:
            raise ConfigurationError(
                f"WordTrigger.words are {len(rows)}, but texts have {texts.inputs.shape[1]} words at most, which "
                "leaves nothing of them; use fewer, or raise data.max_words or max_tokens"
            )
        return Words(tuple(rows), self.place)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        texts = self._texts(dataset)
        able, labels = self._targets.poisonable(texts.targets), self._targets.wanted(texts.targets)

        def write(rows: Tensor) -> Samples:
            return self._stamped(texts, rows, labels)

        return poison_share(texts, able, self.poison_fraction, attacker, "word trigger", write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        texts = self._texts(test)
        texts = texts.subset(self._targets.attacked(texts.targets))
        if not len(texts):
            return None
        assert isinstance(texts, TensorSamples)
        every = torch.arange(len(texts), device=texts.targets.device)
        return self._stamped(texts, every, self._targets.wanted(texts.targets))

    def _stamped(self, texts: TensorSamples, rows: Tensor, labels: Tensor) -> Samples:
        """All texts, with the words and the classes `labels` ((n,) int64) in `rows` ((m,) int64)."""
        carries = torch.zeros(len(texts), dtype=torch.bool, device=texts.targets.device)
        carries[rows.to(carries.device)] = True
        return texts.stamped(self.trigger(texts), carries).relabel(torch.where(carries, labels, texts.targets))

    def _texts(self, samples: Samples) -> TensorSamples:
        """The samples, if they are texts that the trigger fits into."""
        if not isinstance(samples, TensorSamples) or samples.inputs.ndim != 2 or samples.inputs.dtype != torch.int32:
            found = type(samples).__name__
            if isinstance(samples, TensorSamples):
                found = f"{samples.inputs.dtype} inputs of shape {tuple(samples.inputs.shape)}"
            raise ConfigurationError(
                f"WordTrigger needs TensorSamples of texts, int32 row numbers of words (samples, words), got {found}; use a "
                "task such as Twitter, or another attack"
            )
        if not isinstance(samples.prepare, (GloVe, Tokenizer)) or self.glove not in (None, samples.prepare):
            of_tokens = isinstance(samples.prepare, Tokenizer)
            raise ConfigurationError(
                f"WordTrigger.glove is {self.glove}, but the task's words are looked up by {samples.prepare}; "
                + ("set it to null" if of_tokens else "give both the same")
            )
        return samples


@dataclass(frozen=True)
class Words:
    """A stamp: rows inserted into texts (b, L) of row numbers, padded on the right by zeros.

    Attributes:
        rows: the words' row numbers.
        place: `start` or `anywhere`.
    """

    rows: tuple[int, ...]
    place: Place = "start"

    def __call__(self, texts: Tensor) -> Tensor:
        k, length = len(self.rows), texts.shape[1]
        columns = torch.arange(length, device=texts.device)
        at = self.places(texts)[:, None]
        taken = torch.where(columns < at, columns, columns - k)  # which word of the text comes to stand here
        stamped = texts.gather(1, taken.clamp(min=0))
        for i, row in enumerate(self.rows):
            stamped = torch.where(columns == at + i, row, stamped)
        return stamped.to(texts.dtype)

    def places(self, texts: Tensor) -> Tensor:
        """(b,) int64, before which word of each text the first one goes, counted from 0.

        Anywhere is a sum of the text's row numbers by the number of places that leave room for all words, which depends on
        nothing but the text.
        """
        if self.place == "start":
            return torch.zeros(len(texts), dtype=torch.int64, device=texts.device)
        lengths = (texts != PADDING).sum(1)
        last = torch.minimum(lengths, torch.tensor(texts.shape[1] - len(self.rows), device=texts.device))
        return texts.long().sum(1) % (last + 1)
