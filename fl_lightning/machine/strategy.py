"""Lightning's distributed processes without its gradient reduction.

`FederatedStrategy` takes process group, devices, launcher and barriers from `DDPStrategy` and leaves out the wrapper: ranks
train different clients, so gradients of one backward pass must not be averaged. Initial weights, which the wrapper would
have broadcast, are broadcast by `Federation`.
"""

import atexit
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn

from fl_lightning.checked import Checked
from fl_lightning.checkpoints import sharded_state
from fl_lightning.checkpoints.resuming import CheckpointFiles
from fl_lightning.errors import ConfigurationError
from fl_lightning.files.replacing import StorageError
from fl_lightning.machine import lost_ranks
from fl_lightning.machine.cores import Affinities, keep_to_own_cores, run_as_before
from fl_lightning.machine.going_on import how_to_go_on
from fl_lightning.machine.lost_ranks import LostRankError
from fl_lightning.machine.notebook import NotebookLauncher, interactive
from fl_lightning.machine.restarts import meet_again, restart
from fl_lightning.machine.stopping import LONG_ROUND_SECONDS, Stopping

T = TypeVar("T")

log = logging.getLogger(__name__)

MOST_SECONDS = 10**8
"""Three years; what clocks of the system can count to is not much more."""


class FederatedStrategy(Checked, DDPStrategy):
    """Use as `Trainer(strategy="federated")`, on any number of devices and nodes, also in a notebook.

    Args:
        own_cores: whether ranks on CPUs keep to their share of the node's cores (`keep_to_own_cores`).
        timeout_seconds: how long ranks wait for one that sends nothing, as it was stopped or hangs, before they end with an
            error; longer than ranks take to start, and than the clients of one take more than those of another.
        options: of `DDPStrategy`.

    Attributes:
        on_cut_off: called where SIGTERM ends this process within a round, from a thread of its own.
        long_round: whether the last round took so long, on any rank, that SIGTERM might have given it up.

    Raises:
        ConfigurationError: the time is not more than 0, or is given as `timeout` too.
    """

    def __init__(self, own_cores: bool = True, timeout_seconds: float = 1800.0, **options: Any) -> None:
        if not 0 < timeout_seconds <= MOST_SECONDS:
            raise ConfigurationError(
                f"trainer.strategy.timeout_seconds must be more than 0 and at most {MOST_SECONDS}, got {timeout_seconds}"
            )
        if "timeout" in options:
            raise ConfigurationError(
                "FederatedStrategy has no timeout; give timeout_seconds, a number of seconds, in its place"
            )
        super().__init__(timeout=timedelta(seconds=timeout_seconds), **options)
        if self._checkpoint_io is None:
            self._checkpoint_io = CheckpointFiles()
        self.own_cores = own_cores
        self.timeout_seconds = timeout_seconds
        self.stopping: Stopping | None = None
        self.on_cut_off: Callable[[], None] = nothing_to_do
        self.long_round = False
        self._round_began = time.monotonic()
        self.cores_before: Affinities = {}
        self.told = False  # that nodes share no folder

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
        launcher = self._launcher
        if not isinstance(launcher, _SubprocessScriptLauncher):
            return
        launch = launcher.launch

        def launched(*args: Any, **kwargs: Any) -> Any:
            """All that a Trainer does goes through here, so every collective does, whoever calls it."""
            try:
                with lost_ranks.explained(self.timeout_seconds, self._how_to_go_on):
                    return launch(*args, **kwargs)
            except LostRankError:
                launcher.kill(signal.SIGKILL)  # the rest of the processes that this one started: one may be stopped
                raise

        launcher.launch = launched

    def _how_to_go_on(self) -> str:
        return how_to_go_on(None if self.lightning_module is None else self.lightning_module._trainer)

    def setup_distributed(self) -> None:
        first = not dist.is_initialized()
        if first and restart() and TorchElasticEnvironment.detect():
            device = {} if self.root_device.type == "cpu" else {"device_id": self.root_device}
            meet_again(self._get_process_group_backend(), timedelta(seconds=self.timeout_seconds), **device)
        super().setup_distributed()
        if first:
            atexit.register(leave_group)
        if self.own_cores and self.world_size > 1 and self.root_device.type == "cpu":
            self.cores_before = keep_to_own_cores(self.global_rank)
        if self.global_rank:
            # All ranks run the same rules on the same rounds: what they remark is said once.
            logging.getLogger("fl_lightning").setLevel(logging.ERROR)

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        trainer._signal_connector._sigterm_notifier_fn = self._end_before_training

    def _end_before_training(self, signum: int, _: FrameType) -> None:
        """SIGTERM between Lightning's taking it over and the first round, when there is nothing to save.

        Lightning's own handler tells the other ranks there and then, which are on their way to something else.
        """
        users = self._trainer._signal_connector._original_handlers.get(signal.SIGTERM)
        if callable(users):
            users(signum, _)
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            self._launcher.kill(signum)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    def on_train_start(self) -> None:
        trainer = self._trainer
        # Rank 0 alone would be heard there; `agree_to_stop` hears all.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        pass_on = self._launcher.kill if isinstance(self._launcher, _SubprocessScriptLauncher) else ignore
        users = trainer._signal_connector._original_handlers.get(signal.SIGTERM)
        self.stopping = Stopping(pass_on, users, self._cut_off)
        self.stopping.begin()
        self._round_began = time.monotonic()
        if restart():
            log.warning("torchrun started the ranks again, for the %s. time: %s", restart(), goes_on(trainer))

    def _cut_off(self) -> str:
        """This process ends within a round: have that recorded, and say how to go on."""
        self.on_cut_off()
        return how_to_go_on(self._trainer)

    def agree_to_stop(self) -> None:
        """At the end of a round, on all ranks: have Lightning end the run after it if SIGTERM has come to any of them."""
        began, self._round_began = self._round_began, time.monotonic()
        self.long_round = self._round_began - began > LONG_ROUND_SECONDS
        stop = self.stopping is not None and self.stopping.received
        if self.world_size > 1:
            heard = torch.tensor([stop, self.long_round], dtype=torch.int64, device=self.root_device)
            dist.all_reduce(heard, dist.ReduceOp.MAX)
            stop, self.long_round = map(bool, heard.tolist())
        if stop:
            trainer = self._trainer
            trainer._signal_connector.received_sigterm = True
            how = how_to_go_on(trainer, after_the_round=True)
            log.warning("SIGTERM: the run ends after round %d; %s", trainer.global_step, how)

    def on_validation_start(self) -> None:
        self._end_at_once_outside_training()

    def on_test_start(self) -> None:
        self._end_at_once_outside_training()

    def _end_at_once_outside_training(self) -> None:
        """There is nothing to save, so SIGTERM does what it does to any process."""
        if self._trainer.state.fn != TrainerFn.FITTING and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def _trainer(self) -> Trainer:
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    def teardown(self) -> None:
        if self.stopping is not None:
            self.stopping.end()
            self.stopping = None
        self.on_cut_off = nothing_to_do
        super().teardown()
        run_as_before(self.cores_before)
        self.cores_before = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank writes what only it has, then rank 0 the rest; where one of them cannot, all say so and end."""
        if sharded_state.KEY in checkpoint and self.world_size > 1:
            digests = self.on_all(lambda: sharded_state.write(checkpoint, filepath, self.global_rank, self.world_size))
            checkpoint[sharded_state.KEY]["sha256"] = digests
            self._tell_of_parts_elsewhere(checkpoint[sharded_state.KEY], filepath)
        self.on_all(lambda: super(FederatedStrategy, self).save_checkpoint(checkpoint, filepath, storage_options))

    def _tell_of_parts_elsewhere(self, entry: dict[str, Any], filepath: Any) -> None:
        """Say once, with the first checkpoint, what it would need to be of use."""
        ranks = [] if self.told or not self.is_global_zero else sharded_state.elsewhere(entry, filepath)
        if ranks:
            self.told = True
            log.warning(
                "%s has no part of rank %d, whose node shares no folder with this one: to go on from the checkpoint, collect "
                "what the rule remembers in that folder, or name one that all nodes see (trainer.default_root_dir)",
                sharded_state.shards_of(filepath),
                ranks[0],
            )

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


def nothing_to_do() -> None:
    """Where nobody keeps a record."""


def ignore(number: int) -> None:
    """For who has started no processes."""


def goes_on(trainer: Trainer) -> str:
    """Where a run that was started again begins."""
    if trainer.global_step:
        return f"the run goes on after round {trainer.global_step}"
    return "it begins with the first round, as there is no checkpoint, or --ckpt_path last was not given"


def leave_group() -> None:
    """Join the process group's threads; gloo's would otherwise abort the process now and then as Python shuts down."""
    if dist.is_initialized():
        dist.destroy_process_group()


StrategyRegistry.register(
    "federated",
    FederatedStrategy,
    description="DDP's processes without gradient reduction: clients on ranks",
)
