"""What a run was and what came out of it, in one file."""

import json
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fl_lightning.callbacks.digests import compare, config_sha256, experiment, weights_sha256
from fl_lightning.callbacks.earlier import make_room, prepare
from fl_lightning.callbacks.ending import RUNNING, Ending, broken_off, ending, renew_time
from fl_lightning.callbacks.history import History
from fl_lightning.callbacks.hyperparameters import log_results, log_settings
from fl_lightning.callbacks.machine import MemoryTaken, hardware, versions
from fl_lightning.callbacks.summary import show
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.errors import SOME_LETTERS, ConfigurationError, enumerated
from fl_lightning.federation import Federation
from fl_lightning.files.replacing import StorageError, is_file_of
from fl_lightning.files.run_files import TRAINING_LOCK, LockedError, RoundLines, take_lock, write_whole, written_together
from fl_lightning.files.sealed import sealed, with_digest
from fl_lightning.files.yaml_files import write_yaml
from fl_lightning.machine.strategy import FederatedStrategy
from fl_lightning.modules.code_digests import VERSION, changed, code_digests
from fl_lightning.training.stopwatch import ATTACKERS_TRAINING

log = logging.getLogger(__name__)


@runtime_checkable
class Recorded(Protocol):
    """A callback with this method has something of its own for `run.json`."""

    def for_run_json(self, federation: Federation, history: History) -> dict[str, Any]:
        """Further keys, as plain data; called on rank 0 whenever the record is written, with the evaluations so far."""
        ...


class RunRecord(L.Callback):
    """Writes `run.json`, `metrics.jsonl` and `config.yaml` into `Trainer(default_root_dir=...)`; loggers get the settings too.

    `metrics.jsonl` gets a line per evaluation, `round` and every `val/` metric as JSON. A run that goes on has the lines up to
    its checkpoint; those after it come again, the same.
    `run.json` is written as the run begins and as it ends; in between, `metrics.jsonl` tells how far it is. Its keys:
    `state` (`running`, also of a run that was killed at once; `finished`, `stopped`, `interrupted` or `failed`: see `Ending`),
    `reason`, `finished` (whether the state is that),
    `acc`, `asr` (last evaluation, after `evaluated_round` rounds), `acc_last10`, `asr_last10` (means of the last evaluations,
    ten at most; null where there are fewer than three) with `acc_last10_rounds`, `asr_last10_rounds` (the rounds they are of),
    `rounds`, `seed`, `config`, `config_hash`, `world_size`, `versions`, `hardware`,
    `seconds` (per phase of the rounds, on rank 0, which waits for the slowest one in `exchange`; `attackers_training` is what
    malicious clients took of `local_training`, on all ranks together, but for those trained side by side with others),
    `executor` (how rank 0 took local steps in the end),
    `client_updates_per_second` (evaluation not counted),
    `peak_memory_bytes` (the largest of all ranks), `extra_memory_bytes` (the most that a malicious client's training, attacks
    on updates, the rule and its examination took beyond what a rank held before them, likewise; not of clients trained side by
    side; empty where the system does not tell), `excluded_updates`, `refused_rounds`, `initial_weights_sha256` and
    `weights_sha256` (of the global parameters and buffers before the first round and in the end), `start_from` (`path` and
    `sha256` of the weights that it began with, null for the client's own), `prefix` (of a sweep's run that was forked from
    another: that one's `id`, its `round` and `config_hash`, its `rule` where this one has another, and whether the run is
    `exact`, as if run from its start), what other callbacks add (`lifespan` by `BackdoorLifespan`, `detection` by
    `DetectionMetrics`, `metrics` by `BackdoorMetrics` where there are more than Acc and ASR, `acc_by_class` and `acc_by_client`
    by `AccuracyByGroup`), `sha256` (of all the others, by which damage is noticed; `config.yaml` has one in its last line).

    A run that does not go on with what is in the folder puts that aside, into `earlier/1`, `earlier/2` and so on. A resumed run
    refuses a checkpoint that was written under another configuration, and no two runs train in one folder at the same time:
    rank 0 holds `training.lock`. A trial (`Trainer(fast_dev_run=...)`) writes nothing.

    Args:
        config: the resolved configuration. The command line fills it in; from Python, give any mapping that JSON can hold.
    """

    reserved = ("val/round",)  # the column `round` of metrics.jsonl

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}
        self.history = History()
        self.initial_weights: str | None = None
        self._code: dict[str, str] = {}
        self.start: dict[str, Any] | None = None  # path and digest of what `model.start_from` named as the run began
        self.prefix: dict[str, Any] | None = None  # of a forked run: what it was forked from
        self._began: int | None = None  # rounds done as the present fit began; None where none is under way
        self._lock: IO[str] | None = None

    @property
    def config_hash(self) -> str:
        """SHA-256 of what defines the experiment: see `experiment`."""
        start = None if self.start is None else self.start["sha256"]
        prefix = None if self.prefix is None or self.prefix["exact"] else self.prefix["config_hash"]
        return config_sha256(self.config, start=start, prefix=prefix)

    # ---- the beginning: whatever can be found wrong without training has been by now ------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        if trainer.global_step:
            self.history.go_on()
        else:
            self.history.clear()
            self.prefix = None
            self.initial_weights = weights_sha256(pl_module.client) if trainer.is_global_zero else None
        self._code = code_of(pl_module)
        self._begin(trainer, pl_module)

    def _begin(self, trainer: L.Trainer, federation: Federation) -> None:
        self.start = federation.warm_start.record
        if trainer.is_global_zero and not is_trial(trainer):
            self._write_first(trainer, federation)
            if isinstance(trainer.strategy, FederatedStrategy):
                trainer.strategy.on_cut_off = partial(self._cut_off, trainer, federation)
        self._began = trainer.global_step  # from now on the record in the folder is this run's, and no earlier one's

    def _write_first(self, trainer: L.Trainer, federation: Federation, *, again: bool = False) -> None:
        """Take the folder and write the record into it; `again` where somebody deleted what this run had there."""
        folder = Path(trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(folder / TRAINING_LOCK, patience=2.0)
            prepare(folder)
            first = {
                "config.yaml": with_digest(write_yaml(self.config)),
                "run.json": text(self._record(trainer, federation, RUNNING)),
                "metrics.jsonl": self.history.text,
            }
            with written_together({folder / name: content for name, content in first.items()}):
                if not again:
                    make_room(trainer, self.config_hash)  # once there is room for a record of this run
            self.metrics = RoundLines(folder / "metrics.jsonl", afresh=False)
        except LockedError:
            raise ConfigurationError(
                f"another run is training in {folder}; wait for its end, or give another trainer.default_root_dir"
            ) from None
        except StorageError:  # which says what to do
            raise
        except OSError as error:
            raise ConfigurationError(
                f"trainer.default_root_dir: {folder} cannot be written to: {error}; give a folder that can"
            ) from error
        if not again:
            log_settings(trainer.loggers if self.config else [], self.config)

    def _keep_folder(self, trainer: L.Trainer, federation: Federation) -> None:
        """Write the record anew where somebody deleted the folder: what was computed is not lost with it."""
        if self._lock is None or is_file_of(self._lock, Path(trainer.default_root_dir) / TRAINING_LOCK):
            return
        log.warning("%s was deleted while a run trained there; its record is written anew", trainer.default_root_dir)
        self._unlock()
        self._write_first(trainer, federation, again=True)

    # ---- the rounds ------------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, Federation)
        measured = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        entry = self.history.add({"round": trainer.global_step, **measured})
        self.history.closing = trainer.global_step if pl_module.evaluations.closing else None
        if trainer.is_global_zero and not is_trial(trainer):
            self._keep_folder(trainer, pl_module)
            self.metrics.add(entry)

    # ---- the end ---------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        if self._began is None:  # no round was left
            self._begin(trainer, pl_module)
        device = trainer.strategy.root_device  # in the end the federation is on the CPU, where NCCL cannot reduce
        of_rank = MemoryTaken.of(pl_module, device).as_tensor(device)
        memory = MemoryTaken.from_tensor(trainer.strategy.reduce(of_rank, reduce_op="max"))
        if trainer.is_global_zero:
            assert self._began is not None
            self._keep_folder(trainer, pl_module)
            digest = weights_sha256(pl_module.client)
            record = self._record(trainer, pl_module, ending(trainer, self._began), weights=digest, memory=memory)
            self._write(trainer, record)
            log_results(trainer.loggers if self.config else [], self.config, record)
            show(record, None if is_trial(trainer) else Path(trainer.default_root_dir))
        self._began = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._began is not None and self._lock is not None:
            assert isinstance(pl_module, Federation)
            with suppress(OSError):  # which would hide what went wrong
                self._write(trainer, self._record(trainer, pl_module, broken_off(exception, trainer.global_step)))
        self._began = None
        self._unlock()

    def _cut_off(self, trainer: L.Trainer, federation: Federation) -> None:
        """SIGTERM ends the process within a round; called beside the training, of which nothing more will come."""
        rounds = trainer.global_step
        with suppress(OSError):
            self._write(trainer, self._record(trainer, federation, broken_off(SIGTERMException(), rounds)))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _write(self, trainer: L.Trainer, record: dict[str, Any]) -> None:
        """Write `run.json`, but for a trial; on rank 0."""
        if not is_trial(trainer):
            write_whole(Path(trainer.default_root_dir) / "run.json", text(record))

    def _record(
        self,
        trainer: L.Trainer,
        federation: Federation,
        ended: Ending,
        weights: str | None = None,
        memory: MemoryTaken | None = None,
    ) -> dict[str, Any]:
        """What `run.json` says; on rank 0."""
        device, history = trainer.strategy.root_device, self.history
        memory = memory or MemoryTaken.of(federation, device)
        of_phases = dict(federation.seconds)  # a copy, as a round may be under way
        busy = sum(seconds for phase, seconds in of_phases.items() if phase not in ("evaluation", ATTACKERS_TRAINING))
        further: dict[str, Any] = {}
        for callback in trainer.callbacks:  # pyrefly: ignore[missing-attribute]
            if isinstance(callback, Recorded):
                further |= callback.for_run_json(federation, history)
        return {
            "state": ended.state,
            "reason": ended.reason,
            "finished": ended.state == "finished",
            "acc": history.last("acc"),
            "asr": history.last("asr"),
            "evaluated_round": history.last("round"),
            "acc_last10": history.mean("acc"),
            "asr_last10": history.mean("asr"),
            "acc_last10_rounds": history.rounds("acc"),
            "asr_last10_rounds": history.rounds("asr"),
            **further,
            "rounds": trainer.global_step,
            "seed": federation.seed,
            "excluded_updates": federation.excluded_updates,
            "refused_rounds": federation.refused_rounds,
            "executor": federation.clients.way,
            "client_updates_per_second": federation.client_updates / busy if busy else None,
            "seconds": {phase: round(seconds, 4) for phase, seconds in of_phases.items()},
            "peak_memory_bytes": memory.peak,
            "extra_memory_bytes": memory.extra,
            "world_size": trainer.world_size,
            "start_from": self.start,
            "prefix": self.prefix,
            "initial_weights_sha256": self.initial_weights,
            "weights_sha256": weights,
            "config_hash": self.config_hash,
            "hardware": hardware(device),
            "versions": versions(),
            "config": self.config,
        }

    # ---- checkpoints carry evaluations and configuration -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.history.text,
            "closing": self.history.closing,
            "initial_weights": self.initial_weights,
            "prefix": self.prefix,
            "config": self.config,
            "config_hash": self.config_hash,  # by which a checkpoint is known that lies in another run's folder
            "code": {"python": VERSION, "classes": self._code},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "metrics" in state_dict:
            self.history.load(state_dict["metrics"])
        else:  # of a version that kept them in run.json
            self.history.clear()
            for entry in state_dict["history"]:
                self.history.add(entry)
        self.history.closing = state_dict.get("closing")
        self.initial_weights = state_dict.get("initial_weights")
        self.prefix = state_dict.get("prefix")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        written = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("config")
        if written is not None:
            begun = (checkpoint.get("federation", {}).get("start_from") or {}).get("sha256")
            there, here = (experiment(config, rounds=False, start=begun) for config in (written, self.config))
            differences = list(compare(there, here))
            if differences:
                raise ConfigurationError(
                    "the checkpoint was written under another configuration: "
                    + enumerated(differences, SOME_LETTERS, "; ")
                    + ". Resume with the configuration in config.yaml beside it, or start afresh in another folder "
                    "(--trainer.default_root_dir)"
                )
        if trainer.state.fn != "fit":
            return
        code = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("code", {})
        if code.get("python") == VERSION and (new := changed(code["classes"], code_of(pl_module))):
            log.warning(
                "%s was changed since the checkpoint was written; the run goes on with the code as it is now, not as "
                "it began with",
                enumerated(new),
            )
        if renew_time(trainer, checkpoint):
            log.warning("max_time was over when the checkpoint was written; this start has it anew")


def code_of(federation: L.LightningModule) -> dict[str, str]:
    """Digests of the user's own code in a federation: client, rule and attacks."""
    assert isinstance(federation, Federation)
    return code_digests([*federation.client.modules(), *federation.aggregator.modules(), *federation.attacks])


def text(record: dict[str, Any]) -> str:
    """A record as it stands in its file."""
    return json.dumps(sealed(record), indent=1) + "\n"
