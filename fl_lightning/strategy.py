"""Lightning's distributed processes without its gradient reduction.

`FederatedStrategy` takes process group, devices, launcher and barriers from `DDPStrategy` and leaves out the wrapper: ranks
train different clients, so gradients of one backward pass must not be averaged. Initial weights, which the wrapper would
have broadcast, are broadcast by `Federation`.
"""

import atexit
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from fl_lightning import sharded_state
from fl_lightning.cores import Affinities, keep_to_own_cores, run_as_before
from fl_lightning.errors import ConfigurationError
from fl_lightning.replacing import StorageError
from fl_lightning.resuming import CheckpointFiles

T = TypeVar("T")


class FederatedStrategy(DDPStrategy):
    """Use as `Trainer(strategy="federated")`, on any number of devices and nodes.

    Args:
        own_cores: whether ranks on CPUs keep to their share of the node's cores (`keep_to_own_cores`).
        options: of `DDPStrategy`.
    """

    def __init__(self, own_cores: bool = True, **options: Any) -> None:
        super().__init__(**{"checkpoint_io": CheckpointFiles(), **options})
        self.own_cores = own_cores
        self.cores_before: Affinities = {}

    def configure_ddp(self) -> None:
        """No wrapper, no hooks: see the module's docstring."""

    def setup_distributed(self) -> None:
        first = not dist.is_initialized()
        super().setup_distributed()
        if first:
            atexit.register(leave_group)
        if self.own_cores and self.world_size > 1 and self.root_device.type == "cpu":
            self.cores_before = keep_to_own_cores(self.global_rank)
        if self.global_rank:
            # All ranks run the same rules on the same rounds: what they remark is said once.
            logging.getLogger("fl_lightning").setLevel(logging.ERROR)

    def teardown(self) -> None:
        super().teardown()
        run_as_before(self.cores_before)
        self.cores_before = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank writes what only it has, then rank 0 the rest; where one of them cannot, all say so and end."""
        if sharded_state.KEY in checkpoint and self.world_size > 1:
            digests = self.on_all(lambda: sharded_state.write(checkpoint, filepath, self.global_rank, self.world_size))
            checkpoint[sharded_state.KEY]["sha256"] = digests
        self.on_all(lambda: super(FederatedStrategy, self).save_checkpoint(checkpoint, filepath, storage_options))

    def on_all(self, write: Callable[[], T]) -> list[T]:
        """What writing returned on each rank.

        Raises:
            StorageError: a rank cannot write; on all ranks alike, as the others would wait for it.
        """
        trouble, mine = None, None
        try:
            mine = write()
        except StorageError as error:
            trouble = str(error)
        everyone: list[Any] = [(trouble, mine)] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyone, (trouble, mine))
        for said, _ in everyone:
            if said is not None:
                raise StorageError(said)
        return [result for _, result in everyone]

    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            sharded_state.remove(filepath)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        try:
            super().load_model_state_dict(checkpoint, strict=strict)
        except RuntimeError as error:
            raise ConfigurationError(
                f"the checkpoint is of another model: {error}; use the configuration in config.yaml beside it"
            ) from error


def leave_group() -> None:
    """Join the process group's threads; gloo's would otherwise abort the process now and then as Python shuts down."""
    if dist.is_initialized():
        dist.destroy_process_group()


StrategyRegistry.register(
    "federated",
    FederatedStrategy,
    description="DDP's processes without gradient reduction: clients on ranks",
)
