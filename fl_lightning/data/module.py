"""The Lightning data module of a federation: a training set dealt out to clients, and the sets it is evaluated on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fl_lightning.checked import whole
from fl_lightning.data.base import Samples
from fl_lightning.data.batch_classes import classes_in, keeps_order
from fl_lightning.data.dealt import Dealing, as_keys, check_dealing, deal
from fl_lightning.data.given import Wishes, as_samples
from fl_lightning.data.outcomes import Outcome
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.sample_form import Key
from fl_lightning.data.steady_reading import SteadyReading
from fl_lightning.data.table import column_of
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.subclasses import Made
from fl_lightning.seeding import generator

TRIED = 32
"""Samples of the test set that are joined at once before training, to see that their classes can be told."""


@dataclass(frozen=True)
class Task:
    """What a data module loads.

    Attributes:
        train: all clients' training samples together.
        test: the clean test set that accuracy is measured on.
        num_classes: classes are 0 to num_classes - 1; of several labels or numbers per sample, how many these are.
        keys: (n,) int64, for data that come with a natural grouping (an author, a hospital): the group of each training
            sample, read by partitions such as `ByKey` and `PackedKeys`.
        test_keys: the same of each test sample, by which accuracy can be told client by client; none where they have no groups,
            and -1 for one of a group without training samples.
    """

    train: Samples
    test: Samples
    num_classes: int
    keys: Tensor | None = None
    test_keys: Tensor | None = None


class FederatedDataModule(Made, L.LightningDataModule):
    """Deals a task's training samples out to clients and serves evaluation in batches.

    A subclass implements `load`. Evaluation batches have the same boundaries on any number of ranks (rank r takes
    batches r, r + W, ...), so predictions cannot depend on W and no sample is counted twice.

    Args:
        partition: how training samples are dealt out to clients.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: training samples that the server keeps for a rule that trusts them (FLTrust); they are taken out before the
            others are dealt out.

    Attributes:
        clients: one (n_i,) int64 index tensor per client, after `setup`.
        sizes: (number of clients,) int64, samples per client, after `setup`.
        evaluation: the evaluation sets by name: `clean`, and `stamped` where an attack is configured, with `stamped/<name>` for
            parts of its trigger.
        root_samples: the server's own samples, where there are any, after `setup`.
        class_names: what the classes are called, in order; empty where they have no names.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self, partition: Partition, *, eval_batch_size: int = 1000, seed: int = 0, root: RootSet | None = None
    ) -> None:
        super().__init__()
        if not isinstance(root, RootSet | None):
            raise ConfigurationError(f"data.root must be a RootSet, such as RootSet(samples=100), got {root!r}")
        check_dealing(partition)
        self.partition = partition
        self.eval_batch_size = whole("data.eval_batch_size", eval_batch_size, 1)
        self.seed = whole("data.seed", seed)
        self.root = root
        self.task: Task | None = None
        self.root_samples: Samples | None = None
        self.clients: list[Tensor] = []
        self.sizes = torch.empty(0, dtype=torch.int64)
        self.evaluation: dict[str, Samples] = {}
        # A rank may have fewer evaluation batches than another, also none.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @abstractmethod
    def load(self) -> Task:
        """Read the data from where `prepare_data` left it; called once per process."""
        raise NotImplementedError

    @staticmethod
    def from_datasets(  # pyrefly: ignore[bad-override]  federations are made of other things than Lightning's loaders
        train: Dataset[Any],
        test: Dataset[Any],
        *,
        partition: Dealing,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        keys: Any = None,
        test_keys: Any = None,
        outcome: Outcome | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        target_key: Key | None = None,
        images: bool | None = None,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> FederatedDataModule:
        """A federation of any two map-style data sets of `(input, class)` pairs, longer tuples or mappings with a class entry.

        Classes are whole numbers, texts or one-hot rows, stated alike in both data sets. Inputs of pairs are read into memory
        once where they are tensors of one shape, take at most 1 GiB, and do not change when they are read again, as with random
        transforms; so are the columns of Hugging Face's data sets. All else is read sample by sample for every batch. Without a
        `collate_fn`, pictures of PIL become tensors (C, H, W) in [0, 1] and lists of numbers become tensors. Attacks on
        pictures write triggers into these inputs, in the scale that the data set gives them.

        Args:
            train: all clients' training samples together; `Samples` are taken as they are.
            test: the clean test set.
            partition: how `train` is dealt out: a `Partition`, a function `(targets, generator, keys)` that gives the positions
                of each client's samples, or these themselves.
            num_classes: left out, as many as there are names or entries of one-hot rows, else one more than the largest class
                in `train`.
            class_names: what classes are called, in their order, which is also that of classes that are texts; left out, the
                data sets' own names, and texts in sorted order.
            keys: (n,) group of each training sample, whole numbers or texts, for partitions such as `ByKey`, `PackedKeys` and
                `Pachinko`; or the name of a column, where `train` is a data set of Hugging Face's.
            test_keys: the same of each test sample, or its name, for accuracy client by client.
            outcome: what is asked for of each sample; left out, one class, or what `Samples` say. `Tokens`: a class at every
                position; `MultiLabel`: rows of 0 and 1; `Regression`: numbers.
            collate_fn: joins samples into the batch that the module's `training_step` takes, in training and evaluation; needed
                where samples differ in length.
            target_key: the class entry of samples that are mappings, or its place in tuples, from 0.
            images: True: inputs must be pictures (channels, rows, columns), and pairs are read into memory whatever they take;
                False: read sample by sample whatever they are; None: as said above.
            eval_batch_size: samples per evaluation batch.
            seed: the experiment's seed.
            root: samples that the server keeps for itself.

        Raises:
            ConfigurationError: if a data set is none of this kind, a class is none, samples cannot be read or joined, or
                training and test data state classes in different ways.
        """
        wishes = Wishes(collate_fn, target_key, images, outcome)
        samples, tests, classes, names = as_samples(train, test, wishes, num_classes=num_classes, class_names=class_names)
        groups = column_of(train, keys, "keys") if isinstance(keys, str) else keys
        test_groups = column_of(test, test_keys, "test_keys") if isinstance(test_keys, str) else test_keys
        task = Task(samples, tests, classes, *as_keys(groups, len(samples), test_groups, len(tests)))
        return _GivenData(task, names, partition, eval_batch_size=eval_batch_size, seed=seed, root=root)

    def setup(self, stage: str) -> None:
        """Load and deal out once, however many stages follow."""
        if self.task is not None:
            return
        task = self.load()
        for name, samples in (("training", task.train), ("test", task.test)):
            if not isinstance(samples, Samples):
                raise ConfigurationError(
                    f"load() gives {type(samples).__name__} as {name} data, not Samples; wrap a data set in MapSamples, "
                    "tensors in TensorSamples"
                )
            if not len(samples):
                remedy = (
                    "; where a share is held out, raise data.test_fraction: nobody has enough for it" if name == "test" else ""
                )
                raise ConfigurationError(f"the {name} data have no samples{remedy}")
            samples.outcome.check(samples.targets, task.num_classes, name)
        self._check_outcome(task)
        if self.root is not None:
            task, self.root_samples = hold_out(task, self.root, generator(self.seed, "root set"))
        targets = task.train.targets.cpu()
        clients = deal(self.partition, targets, generator(self.seed, "partition"), task.keys)
        self.task, self.clients = task, clients
        self.sizes = torch.tensor([len(indices) for indices in clients])
        self.evaluation = {"clean": task.test}
        if not keeps_order(task.test):
            next(iter(EvaluationBatches(task.test, min(self.eval_batch_size, TRIED), 0, 1, seed=self.seed)))

    def _check_outcome(self, task: Task) -> None:
        """Raise `ConfigurationError` unless training and test data ask for the same, and what deals by classes has them."""
        asked, tested = task.train.outcome, task.test.outcome
        if asked != tested:
            raise ConfigurationError(f"the training data ask for {asked}, the test data for {tested}; both must be the same")
        if task.test_keys is not None and len(task.test_keys) != len(task.test):
            raise ConfigurationError(
                f"test_keys must be one per test sample, got {len(task.test_keys)} for {len(task.test)} samples"
            )
        if asked.one_class:
            return
        partition = type(self.partition).__name__
        if getattr(self.partition, "by_class", False):
            raise ConfigurationError(
                f"data.partition is {partition}, which deals by class, but the task asks for {asked.words}; use IID, ByKey or "
                "another partition"
            )
        if self.root is not None and self.root.biased_class is not None:
            raise ConfigurationError(
                f"data.root.biased_class is {self.root.biased_class}, but the task asks for {asked.words}; leave it out"
            )

    def to(self, device: torch.device) -> None:
        """Make training and evaluation sets resident on `device`."""
        assert self.task is not None
        self.task = replace(self.task, train=self.task.train.to(device), test=self.task.test.to(device))
        self.evaluation = {name: samples.to(device) for name, samples in self.evaluation.items()}
        self.root_samples = None if self.root_samples is None else self.root_samples.to(device)

    @property
    def outcome(self) -> Outcome:
        """What is asked of the model for each sample."""
        return self.train.outcome

    @property
    def train(self) -> Samples:
        """All clients' training samples together."""
        assert self.task is not None, "setup() has not run"
        return self.task.train

    def client(self, client: int) -> Samples:
        """The clean training samples of one client."""
        return self.train.read_through(self.clients[client])  # most are read batch by batch, and once

    def train_dataloader(self) -> Any:
        """One item per epoch: a round is an epoch of one step, and its data are the clients' own."""
        return OneStep()

    def val_dataloader(self) -> Any:
        """One loader per evaluation set, in the order of `evaluation`, holding this rank's batches."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sets = enumerate(self.evaluation.values())
        return [EvaluationBatches(s, self.eval_batch_size, rank, world, seed=self.seed, which=i) for i, s in sets]

    def test_dataloader(self) -> Any:
        """The same loaders as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        """The clean test set in batches, of which rank r of W has r, r + W, ...; some ranks may have one less."""
        clean = self.val_dataloader()[0]
        return PredictionBatches(clean.samples, clean.batch_size, clean.rank, clean.world, seed=self.seed)


class _GivenData(FederatedDataModule):
    """A data module over data sets that the caller already has."""

    def __init__(
        self,
        task: Task,
        class_names: tuple[str, ...],
        partition: Dealing,
        *,
        eval_batch_size: int,
        seed: int,
        root: RootSet | None,
    ) -> None:
        if root is not None and not callable(partition):
            raise ConfigurationError(
                "data.partition is a list of samples' positions, which data.root would shift by the samples that it takes out; "
                "give a partition or a function that deals out what is left, or leave root out"
            )
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)  # pyrefly: ignore[bad-argument-type]
        self._given = task
        self.class_names = class_names

    def load(self) -> Task:
        return self._given


class OneStep:
    """A loader with a single item."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[int]:
        yield 0


class EvaluationBatches:
    """Every W-th batch of a data set, as `(batch, targets)`, with the same number of items on every rank.

    Where the batches do not divide evenly, the last items of some ranks are `None`: all ranks then pass through the
    same number of evaluation steps, as collective calls require. What data sets draw depends on seed, set and batch alone.
    """

    def __init__(self, samples: Samples, batch_size: int, rank: int, world: int, *, seed: int = 0, which: int = 0) -> None:
        self.samples, self.batch_size, self.rank, self.world = samples, batch_size, rank, world
        self.seed, self.which = seed, which
        self.num_batches = -(-len(samples) // batch_size)

    def __len__(self) -> int:
        return -(-self.num_batches // self.world)

    def __iter__(self) -> Iterator[tuple[Any, Tensor] | None]:
        reading = SteadyReading(self.samples, self.seed, self.which)
        for step in range(len(self)):
            number = step * self.world + self.rank
            start = number * self.batch_size
            if start >= len(self.samples):
                yield None
                continue
            indices = torch.arange(start, min(start + self.batch_size, len(self.samples)))
            batch = reading.batch(indices, number)
            yield batch, classes_in(batch, self.samples, indices)


class PredictionBatches(EvaluationBatches):
    """The batches alone, as training has them, and no `None`: nothing is added up over ranks."""

    def __len__(self) -> int:
        return len(range(self.rank, self.num_batches, self.world))

    def __iter__(self) -> Iterator[Any]:
        yield from (item[0] for item in super().__iter__() if item is not None)


def data_of(trainer: Any) -> FederatedDataModule:
    """The federated data module that a Trainer was given.

    Raises:
        ConfigurationError: it was given none, or another one.
    """
    data = trainer.datamodule
    if not isinstance(data, FederatedDataModule):
        raise ConfigurationError(
            f"a federation needs a FederatedDataModule as the Trainer's datamodule, got {type(data).__name__}; "
            "FederatedDataModule.from_datasets makes one of any two data sets"
        )
    return data


def hold_out(task: Task, root: RootSet, draws: torch.Generator) -> tuple[Task, Samples]:
    """The task without its root set, and the root set."""
    chosen = root.draw(task.train.targets.cpu(), draws)
    left = torch.ones(len(task.train), dtype=torch.bool)
    left[chosen] = False
    others = torch.nonzero(left).flatten()
    keys = None if task.keys is None else task.keys[others]
    return replace(task, train=task.train.subset(others), keys=keys), task.train.subset(chosen)
