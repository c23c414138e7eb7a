"""Lightning's distributed processes without its gradient reduction.

`FederatedStrategy` takes process group, devices, launcher and barriers from `DDPStrategy` and leaves out the wrapper: ranks
train different clients, so gradients of one backward pass must not be averaged. Initial weights, which the wrapper would
have broadcast, are broadcast by `Federation`.
"""

import atexit
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from fl_lightning import sharded_state
from fl_lightning.cores import Affinities, keep_to_own_cores, run_as_before
from fl_lightning.errors import ConfigurationError
from fl_lightning.notebook import NotebookLauncher, interactive


class FederatedStrategy(DDPStrategy):
    """Use as `Trainer(strategy="federated")`, on any number of devices and nodes, also in a notebook.

    Args:
        own_cores: whether ranks on CPUs keep to their share of the node's cores (`keep_to_own_cores`).
        options: of `DDPStrategy`.
    """

    def __init__(self, own_cores: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.own_cores = own_cores
        self.cores_before: Affinities = {}

    def configure_ddp(self) -> None:
        """No wrapper, no hooks: see the module's docstring."""

    def _configure_launcher(self) -> None:
        """As DDP does but in notebooks, where one device needs no further process and several are forks of this one."""
        assert self.cluster_environment is not None
        if not interactive() or self._start_method != "popen" or self.cluster_environment.creates_processes_externally:
            super()._configure_launcher()
        elif self.num_nodes > 1:
            raise ConfigurationError(
                f"Trainer(num_nodes={self.num_nodes}) cannot be started from a notebook; write a script and start it "
                "by torchrun or srun on each node"
            )
        elif self.num_processes > 1:
            self._launcher = NotebookLauncher(self)

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
        """Every rank writes what only it has, then rank 0 the rest."""
        sharded_state.write(checkpoint, filepath, self.global_rank, self.world_size)
        self.barrier("sharded state")
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            sharded_state.remove(filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        except (EOFError, OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise ConfigurationError(
                f"the checkpoint {checkpoint_path} cannot be read ({type(error).__name__}: {error}); it is damaged or no "
                "checkpoint: give another one, or start afresh"
            ) from error

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
