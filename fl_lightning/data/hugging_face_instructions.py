"""Prompts and their answers, for networks that predict the next token: instructions, questions, dialogues.

Training on the answers of instructions alone is due to J. Wei, M. Bosma, V. Zhao, et al., "Finetuned Language Models Are
Zero-Shot Learners", ICLR 2022, https://arxiv.org/abs/2109.01652.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import PADDING
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.outcomes import Tokens
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.text_source import TextSource, check_share, hold_out_texts, names_of, numbered, texts_of
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import IGNORED


class HuggingFaceInstructions(FederatedDataModule):
    """Prompts with answers, and the token after each: inputs (b, L) int64, -1 behind the end, and targets (b, L) int64.

    A text is the prompt, a line break, the answer and the tokenizer's end of a text. Its last token is asked for and not read.
    Targets are -100, which counts for nothing in loss and Acc, behind the end and, unless `on_prompt`, in the prompt. Acc is
    the share of the tokens asked for that are predicted; `val/perplexity` is logged.

    Args:
        partition: how training texts are dealt out to clients; keys are the values of `key_column`. There are no classes, by
            which some partitions deal.
        tokenizer: a name on the Hub, that of the model, or a local folder.
        max_tokens: L, the most that are read of a text, at least 4; longer ones are cut at their end. A text whose prompt
            leaves no room for an answer is left out.
        path: a local file (`.parquet`, `.csv`, `.csv.gz`, `.json`, `.jsonl`), or a folder with one for each split, such as
            `train.csv` and `test.csv`; null for `dataset`.
        dataset: a name on the Hugging Face Hub; null for `path`.
        subset: of a data set on the Hub that has several; null for the only one.
        revision: of `dataset`: a branch, a tag or a commit; null for its main branch.
        prompt_column: the prompts; several columns, such as an instruction and its input, are joined by line breaks.
        answer_column: the answers.
        on_prompt: whether the tokens of prompts are asked for as well.
        key_column: whose texts they are, for `ByKey` and `PackedKeys`; null for none.
        train_split: the name of the training split, or of its file without the ending; of a single file it means nothing.
        test_split: the same of the test split; null holds out `test_fraction`.
        test_fraction: share of the training split's texts that is held out for testing, in (0, 1), where there is no test
            split; which ones depends on nothing but their number.
        eval_batch_size: texts per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it, the test set is not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if texts or tokenizer cannot be had, a column is not there or not as it should be.

    Example:
        >>> data = HuggingFaceInstructions(IID(num_clients=10), tokenizer="openai-community/gpt2", path="alpaca.json")
        >>> data.setup("fit")
        >>> data.train.batch(torch.arange(8))[1].shape
        torch.Size([8, 128])
    """

    def __init__(
        self,
        partition: Partition,
        *,
        tokenizer: str,
        max_tokens: int = 128,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        prompt_column: str | Sequence[str] = "instruction",
        answer_column: str = "output",
        on_prompt: bool = False,
        key_column: str | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        test_fraction: float = 0.1,
        eval_batch_size: int = 32,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        self.source = TextSource(path, dataset, subset, revision, test_split)
        check_share(test_split, test_fraction)
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokens = Tokenizer(tokenizer, max_tokens, whole=True)
        self.path, self.dataset, self.subset, self.revision = path, dataset, subset, revision
        self.prompt_column, self.answer_column, self.key_column = prompt_column, answer_column, key_column
        self.prompt_columns = [prompt_column] if isinstance(prompt_column, str) else list(prompt_column)
        if not self.prompt_columns:
            raise ConfigurationError("data.prompt_column must name a column, or several, got []; instruction is usual")
        if answer_column in self.prompt_columns:
            raise ConfigurationError(
                f"data.answer_column {answer_column!r} is among data.prompt_column, so that each stands in its own prompt; "
                "name another column for one"
            )
        self.on_prompt = on_prompt
        self.train_split, self.test_split, self.test_fraction = train_split, test_split, test_fraction

    def prepare_data(self) -> None:
        self.load()  # fetches

    def load(self) -> Task:
        samples, names = self._read(self.train_split)
        if self.test_split is None:
            rows, held = (torch.from_numpy(of) for of in hold_out_texts(len(samples), self.test_fraction))
            train, test = samples.subset(rows), samples.subset(held)
            names = None if names is None else names[rows.numpy()]
        else:
            train, (test, _) = samples, self._read(self.test_split)
        num_classes = max(self.tokens.vocabulary)  # row 1 is token 0
        return Task(train, test, num_classes=num_classes, keys=None if names is None else numbered(names))

    def _read(self, split: str) -> tuple[TensorSamples, np.ndarray | None]:
        """The samples of a split, and whose they are."""
        keyed = [] if self.key_column is None else [self.key_column]
        table, where = self.source.table(split, [*self.prompt_columns, self.answer_column, *keyed])
        parts = zip(*(texts_of(table, column, where) for column in self.prompt_columns), strict=True)
        prompts = self.tokens.pieces(["\n".join(part for part in row if part) + "\n" for row in parts])
        texts = texts_of(table, self.answer_column, where)
        if not any(texts):
            raise ConfigurationError(f"{where}: no row has a text in data.answer_column {self.answer_column!r}; name another")
        answers = self.tokens.pieces(texts)
        kept = [i for i, prompt in enumerate(prompts) if len(prompt) <= self.max_tokens]
        if not kept:
            raise ConfigurationError(
                f"{where}: no prompt has less than data.max_tokens = {self.max_tokens} tokens, which leaves no room for "
                "answers; raise it"
            )
        inputs, targets = paired([(prompts[i], answers[i]) for i in kept], self.max_tokens, self.tokens.end, self.on_prompt)
        names = None if self.key_column is None else names_of(table, self.key_column)[kept]
        return TensorSamples(inputs, targets, prepare=self.tokens, outcome=Tokens(perplexity=True)), names


def paired(texts: Sequence[tuple[list[int], list[int]]], length: int, end: int, on_prompt: bool) -> tuple[Tensor, Tensor]:
    """Row numbers (n, length) int32 of prompts with answers, and the token after each (n, length) int64.

    Args:
        texts: n prompts and answers, as tokens; prompts are of one to `length` tokens.
        length: L.
        end: the token behind an answer.
        on_prompt: whether the prompt's own tokens are asked for, but for its first.

    Example:
        >>> paired([([5, 6], [7])], 4, end=0, on_prompt=False)[1]
        tensor([[-100,    7,    0, -100]])
    """
    inputs = np.full((len(texts), length), PADDING, dtype=np.int32)
    targets = np.full((len(texts), length), IGNORED, dtype=np.int64)
    for row, target, (prompt, answer) in zip(inputs, targets, texts, strict=True):
        tokens = np.array([*prompt, *answer, end])
        read, following = tokens[:-1][:length], tokens[1:][:length]
        row[: len(read)] = read + 1
        first = 0 if on_prompt else len(prompt) - 1
        target[first : len(following)] = following[first:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
