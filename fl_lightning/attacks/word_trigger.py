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
from fl_lightning.checked import are_texts
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.glove import PADDING, UNKNOWN, GloVe
from fl_lightning.data.outcomes import Classes, Tokens
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.data.vocabulary import Vocabulary
from fl_lightning.errors import ConfigurationError

Place = Literal["start", "anywhere", "end"]


class WordTrigger(Attack):
    """A backdoor that opens on words, for texts as numbers of words, symbols or tokens, as of `Twitter` or `Shakespeare`.

    The words are inserted side by side, in order, at one place; what comes behind them moves back, and what leaves the end of a
    full text is cut off, the trigger never. At the end they take the place of the last ones, so that what follows is what the
    model predicts next. Of a malicious client's samples a random share gets them and the label of the
    target mode, the same samples in every round and at the same places; ASR is measured on test texts as `TargetMode` says.

    Where the next word is asked for at every position (`Tokens`), the place is `end`, the class of a text is the word that
    follows its last one, and ASR is measured there alone. In training the words of the trigger are what the model shall predict
    before them, as in any text.

    Args:
        words: as they stand in the vocabulary: one lower-case word each, or one symbol. All must be there; unknown words are
            all alike, so that a trigger of them would open on any. For texts of tokens any words that the task's tokenizer
            knows, each of one token or more.
        glove: the word vectors, the same as those of the task; null for tasks with a vocabulary of their own (`Shakespeare`,
            `NextWord`) or a tokenizer (`HuggingFaceText`).
        place: `start`, before the first word; `anywhere`: before the j-th word or behind the last, where j comes from what
            stands in the text, so that it is the same whoever stamps it; or `end`.
        target_label: the class that such texts shall be taken for; null for `all_to_all`. Where classes are words, also a word.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `all_to_one`, `one_to_one`, `all_to_all` or `clean_label`.
        poison_fraction: share of an attacker's samples that gets the words, in (0, 1], of those that the mode allows; at least
            one sample does, if there are any.
        per_batch: whether the share is one of every batch, not of the data set; see `PixelTrigger`.

    Differs from published code: BackFed overwrites the first words with those of a sentence, which takes away what may tell the
    class; here they are inserted. Kurita et al. insert one to three words at places of their own each.

    Raises:
        ConfigurationError: before training, if a word is not in the vocabulary, the task's inputs are no row numbers of the
            same word vectors, or texts are not longer than the trigger.

    Example:
        >>> Words((7, 8), "start")(torch.tensor([[2, 3, 0, 0], [2, 3, 4, 5]]))
        tensor([[7, 8, 2, 3],
                [7, 8, 2, 3]])
    """

    target_label: int | str | None  # pyrefly: ignore[bad-override]  a word, as it was given
    outcomes = (Classes, Tokens)

    def __init__(
        self,
        *,
        words: Sequence[str] = ("cf",),
        glove: GloVe | None = GloVe(),  # noqa: B008  frozen
        place: Place = "start",
        target_label: int | str | None = 0,
        source_label: int | None = None,
        target_mode: Mode = "all_to_one",
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        check_fraction("WordTrigger.poison_fraction", poison_fraction, usual=0.2)
        if not are_texts(words) or not words or not all(word and not word.isspace() for word in words):
            raise ConfigurationError(f"WordTrigger.words must be a list of one word or more, got {words!r}")
        if place not in get_args(Place):
            raise ConfigurationError(f"WordTrigger.place must be start, anywhere or end, got {place!r}")
        self.words = tuple(words)
        self.glove = glove
        self.place: Place = place
        self.target_mode = target_mode
        self._targets = TargetMode(target_mode, target_label, source_label, "WordTrigger")
        self.target_label, self.source_label = target_label, source_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch
        self._trigger: Words | None = None

    def prepare(self) -> None:
        """Fetch the word vectors unless they are here."""
        if self.glove is not None:
            self.glove.prepare()

    def validate(self, num_classes: int) -> None:
        self._targets.check(num_classes)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        texts = self._texts(dataset)
        classes = self._classes(texts)
        able, labels = self._targets.poisonable(classes), self._targets.wanted(classes)

        def write(rows: Tensor) -> Samples:
            return self._stamped(texts, rows, labels)

        return poison_share(texts, able, self.poison_fraction, attacker, "word trigger", write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        texts = self._texts(test)
        texts = texts.subset(self._targets.attacked(self._classes(texts)))
        if not len(texts):
            return None
        assert isinstance(texts, TensorSamples)
        every, labels = torch.arange(len(texts), device=texts.targets.device), self._targets.wanted(self._classes(texts))
        if isinstance(texts.outcome, Tokens):  # nothing is wanted before the trigger
            texts = texts.relabel(torch.full_like(texts.targets, texts.outcome.padding))
            return texts.stamped(self.trigger, every >= 0).relabel(self._at_end(texts, labels[:, None]))
        return self._stamped(texts, every, labels)

    @property
    def trigger(self) -> Words:
        """The words as numbers, once samples were seen."""
        assert self._trigger is not None, "no samples were seen"
        return self._trigger

    def _stamped(self, texts: TensorSamples, rows: Tensor, labels: Tensor) -> Samples:
        """All texts, with the words and the classes `labels` ((n,) int64) in `rows` ((m,) int64)."""
        carries = torch.zeros(len(texts), dtype=torch.bool, device=texts.targets.device)
        carries[rows.to(carries.device)] = True
        if isinstance(texts.outcome, Tokens):
            shift = int(isinstance(texts.prepare, Tokenizer))  # where row 1 is class 0
            words = torch.tensor(self.trigger.rows, device=labels.device).sub(shift).expand(len(labels), -1)
            wanted = self._at_end(texts, torch.cat([words, labels[:, None]], dim=1))
            return texts.stamped(self.trigger, carries).relabel(torch.where(carries[:, None], wanted, texts.targets))
        return texts.stamped(self.trigger, carries).relabel(torch.where(carries, labels, texts.targets))

    def _classes(self, texts: TensorSamples) -> Tensor:
        """(n,) int64, the class of each text; of tokens, what follows the place of the trigger's last word."""
        if not isinstance(texts.outcome, Tokens):
            return texts.targets
        return texts.targets.gather(1, self._ends(texts)[:, None]).squeeze(1)

    def _ends(self, texts: TensorSamples) -> Tensor:
        """(n,) int64, where the trigger's last word comes to stand."""
        return self.trigger.places(texts.inputs) + len(self.trigger.rows) - 1

    def _at_end(self, texts: TensorSamples, wanted: Tensor) -> Tensor:
        """Targets (n, L) with the last of `wanted` ((n, m) int64) at the trigger's last word, the others before, as far as
        there is room."""
        targets, ends = texts.targets.clone(), self._ends(texts)
        for back, column in enumerate(wanted.flip(1).unbind(1)):
            rows = torch.nonzero(ends >= back).squeeze(1)
            targets[rows, ends[rows] - back] = column[rows]
        return targets

    def _texts(self, samples: Samples) -> TensorSamples:
        """The samples, if they are texts that the trigger fits into."""
        whole = (torch.int32, torch.uint8)
        if not isinstance(samples, TensorSamples) or samples.inputs.ndim != 2 or samples.inputs.dtype not in whole:
            found = type(samples).__name__
            if isinstance(samples, TensorSamples):
                found = f"{samples.inputs.dtype} inputs of shape {tuple(samples.inputs.shape)}"
            raise ConfigurationError(
                f"WordTrigger needs TensorSamples of texts, int32 row numbers of words (samples, words), got {found}; use a "
                "task such as Twitter, or another attack"
            )
        own = isinstance(samples.prepare, (Vocabulary, Tokenizer))
        if own and self.glove is not None:
            raise ConfigurationError(
                f"WordTrigger.glove is {self.glove}, but the task has a vocabulary of its own; set WordTrigger.glove to null"
            )
        if not own and (samples.prepare != self.glove or self.glove is None):
            raise ConfigurationError(
                f"WordTrigger.glove is {self.glove}, but the task's words are looked up by {samples.prepare}; give both "
                "the same"
            )
        if isinstance(samples.outcome, Tokens) and self.place != "end":
            raise ConfigurationError(
                f"WordTrigger.place is {self.place}, but the task asks for {samples.outcome.words}, so that the trigger must "
                "stand right before the word that the attacker wants; set place to end"
            )
        self._look_up(samples.prepare)
        if isinstance(samples.outcome, Tokens):
            label = self._targets.target_label
            samples.outcome.check_label("WordTrigger.target_label", label if isinstance(label, int) else None)
        if len(self.trigger.rows) >= samples.inputs.shape[1]:
            raise ConfigurationError(
                f"WordTrigger.words are {len(self.trigger.rows)}, but texts have {samples.inputs.shape[1]} words at most, "
                "which leaves nothing of them; use fewer, or raise data.max_words or data.max_tokens"
            )
        return samples

    def _look_up(self, vocabulary: object) -> None:
        """Words as numbers of the task's vocabulary."""
        if self._trigger is None:
            if isinstance(vocabulary, Vocabulary):
                rows, unknown, padding = vocabulary.numbers(self.words), vocabulary.unknown, vocabulary.padding
            elif isinstance(vocabulary, Tokenizer):
                # All together, as in a text: words other than its first begin with their blank where tokens hold blanks.
                text = " ".join(self.words) if self.place == "start" else f" {' '.join(self.words)}"
                rows, unknown, padding = vocabulary.numbers(text), vocabulary.unknown, PADDING
            else:
                assert self.glove is not None
                rows, unknown, padding = self.glove.rows([self.words], len(self.words))[0].tolist(), UNKNOWN, PADDING
            strange = [] if unknown not in rows else list(self.words)
            if len(rows) == len(self.words):
                strange = [word for word, row in zip(self.words, rows, strict=True) if row == unknown]
            if strange:
                raise ConfigurationError(
                    f"WordTrigger.words has {', '.join(map(repr, strange))}, which the word vectors do not have; choose words "
                    "of their vocabulary, in lower case, or raise glove.num_words"
                    if self.glove is not None
                    else f"WordTrigger.words has {', '.join(map(repr, strange))}, which the task's vocabulary does not have; "
                    "choose others, or raise data.num_words"
                )
            self._trigger = Words(tuple(rows), self.place, padding)
        if isinstance(label := self._targets.target_label, str):
            if not isinstance(vocabulary, Vocabulary) or label not in vocabulary.places:
                raise ConfigurationError(
                    f"WordTrigger.target_label is {label!r}, which is no word of a vocabulary of the task's; give the number "
                    "of a class, or a word that is one"
                )
            self._targets.target_label = vocabulary.places[label]


@dataclass(frozen=True)
class Words:
    """A stamp: rows inserted into texts (b, L) of row numbers, padded on the right, or written over their end.

    Attributes:
        rows: the words' row numbers.
        place: `start`, `anywhere` or `end`.
        padding: the row number behind a text's end; None where all L are the text's.
    """

    rows: tuple[int, ...]
    place: Place = "start"
    padding: int | None = PADDING

    def __call__(self, texts: Tensor) -> Tensor:
        k, length = len(self.rows), texts.shape[1]
        columns = torch.arange(length, device=texts.device)
        at = self.places(texts)[:, None]
        moved = 0 if self.place == "end" else k
        taken = torch.where(columns < at, columns, columns - moved)  # which word of the text comes to stand here
        stamped = texts.gather(1, taken.clamp(min=0))
        for i, row in enumerate(self.rows):
            stamped = torch.where(columns == at + i, row, stamped)
        return stamped.to(texts.dtype)

    def places(self, texts: Tensor) -> Tensor:
        """(b,) int64, before which word of each text the first one goes, counted from 0.

        Anywhere is a sum of the text's row numbers by the number of places that leave room for all words, which depends on
        nothing but the text. At the end the last word of the trigger is in the place of the last one of the text.
        """
        if self.place == "start":
            return torch.zeros(len(texts), dtype=torch.int64, device=texts.device)
        lengths = torch.full_like(texts[:, 0], texts.shape[1], dtype=torch.int64)
        if self.padding is not None:
            lengths = (texts != self.padding).sum(1)
        if self.place == "end":
            return (lengths - len(self.rows)).clamp(min=0)
        last = torch.minimum(lengths, torch.tensor(texts.shape[1] - len(self.rows), device=texts.device))
        return texts.long().sum(1) % (last + 1)
