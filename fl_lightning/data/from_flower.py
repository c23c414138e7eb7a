"""Partitions of another library: those of Flower Datasets, and whatever is called as they are.

D. J. Beutel et al., "Flower: A Friendly Federated Learning Research Framework", 2020, https://arxiv.org/abs/2007.14390; the
partitioners are those of the package flwr-datasets, https://flower.ai/docs/datasets.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from fl_lightning.data.partition import Partition, enough
from fl_lightning.errors import ConfigurationError, in_one_line

POSITION, LABEL, KEY = "position", "label", "key"
"""Columns of the data set that a partitioner is given."""

NEEDED = ("dataset", "num_partitions", "load_partition")
"""What a partitioner must have."""


class FlowerPartitioner(Protocol):
    """What is asked of a partitioner."""

    @property
    def dataset(self) -> Any:
        """The rows that are dealt out, as `datasets.Dataset`."""
        ...

    @dataset.setter
    def dataset(self, value: Any) -> None: ...

    @property
    def num_partitions(self) -> int:
        """How many clients there are, once `dataset` is set."""
        ...

    def load_partition(self, partition_id: int) -> Any:
        """The rows of one client, from 0, as `datasets.Dataset`."""
        ...


class FromFlower(Partition):
    """Deals samples out by a partitioner of flwr-datasets, or by any object with the same attributes.

    It is given a data set of Hugging Face's with a row per training sample and the columns `position`, `label` (the class, if
    a sample has one) and, where the data have keys, `key`. So its argument `partition_by` must be `label` or `key`. What it
    draws, it draws from the seed that it was made with, not from the experiment's.

    Args:
        partitioner: has an attribute `dataset`, which is not set yet, `num_partitions`, and `load_partition(partition_id)`. It
            is left as it is; a copy of it is used.

    Raises:
        ConfigurationError: if it has not, fails, or gives rows without their positions, as those do which deal out columns.

    Example:
        >>> FromFlower(partitioner=flwr_datasets.partitioner.IidPartitioner(num_partitions=10))  # doctest: +SKIP
        >>> class EvenAndOdd:
        ...     dataset, num_partitions = None, 2
        ...
        ...     def load_partition(self, partition_id):
        ...         return self.dataset.select(range(partition_id, len(self.dataset), 2))
        >>> FromFlower(partitioner=EvenAndOdd())(torch.zeros(5, dtype=torch.int64), torch.Generator())
        [tensor([0, 2, 4]), tensor([1, 3])]
    """

    def __init__(self, *, partitioner: FlowerPartitioner) -> None:
        # Looked at, not asked for, as those of the library can tell the number only once they have a data set.
        lacks = [name for name in NEEDED if inspect.getattr_static(partitioner, name, NEEDED) is NEEDED]
        if lacks or isinstance(partitioner, type):
            found = f"the class {partitioner.__name__}" if isinstance(partitioner, type) else type(partitioner).__name__
            raise ConfigurationError(
                "data.partition.partitioner must be a partitioner of flwr-datasets, such as IidPartitioner(num_partitions=10), "
                f"got {found}{' without ' + ' and '.join(lacks) if lacks else ''}"
            )
        self.partitioner = partitioner
        by = getattr(partitioner, "_partition_by", getattr(partitioner, "partition_by", None))  # a name, or several
        self.by_class = LABEL in ([by] if isinstance(by, str) else by or ())

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        import datasets  # takes seconds to import

        enough(len(targets), 1, 1, 1)
        classes = {LABEL: targets} if targets.ndim == 1 and not targets.is_floating_point() else {}
        columns = {POSITION: torch.arange(len(targets)), **classes, **({} if keys is None else {KEY: keys})}
        rows = datasets.Dataset.from_dict({name: column.numpy() for name, column in columns.items()})
        try:
            partitioner = copy.deepcopy(self.partitioner)
            partitioner.dataset = rows
            clients = [partitioner.load_partition(i).with_format("numpy") for i in range(partitioner.num_partitions)]
        except Exception as error:  # whatever code of others may raise
            raise ConfigurationError(
                f"data.partition.partitioner ({type(self.partitioner).__name__}) cannot deal out {len(targets)} samples with "
                f"the columns {', '.join(columns)}: {in_one_line(error)}"
            ) from error
        for i, client in enumerate(clients):
            if POSITION not in client.column_names:
                raise ConfigurationError(
                    f"data.partition.partitioner ({type(self.partitioner).__name__}) gives client {i} the columns "
                    f"{', '.join(client.column_names)}; clients must have rows with all columns, so use another partitioner"
                )
        return [torch.from_numpy(client[:][POSITION].copy()) for client in clients]
