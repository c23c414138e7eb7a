"""What a run was and what came out of it, in one file."""

import hashlib
import json
import math
import os
import platform
import resource
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files import TRAINING_LOCK, LockedError, RoundLines, take_lock, write_whole

PACKAGES = ("fl_lightning", "torch", "lightning", "torchmetrics", "datasets", "numpy")


class RunRecord(L.Callback):
    """Writes `run.json`, `metrics.jsonl` and `config.yaml` into `Trainer(default_root_dir=...)`; loggers get the settings too.

    `metrics.jsonl` gets a line per evaluation, `round` and every `val/` metric as JSON; it is only ever added to, but for a run
    that starts again from its first round.
    `run.json` is replaced at every evaluation, so a run that is killed leaves what it had; `finished` tells. Its keys:
    `acc`, `asr` (last evaluation), `acc_last10`, `asr_last10` (means of the last ten), `history` (the lines of
    `metrics.jsonl`), `rounds`, `seed`, `config`, `config_hash`, `world_size`, `versions`, `hardware`,
    `seconds` (per phase of the rounds, on rank 0, which waits for the slowest one in `exchange`),
    `executor` (how rank 0 took local steps in the end),
    `client_updates_per_second` (evaluation not counted),
    `peak_memory_bytes` (the largest of all ranks), `excluded_updates`, `refused_rounds`, `weights_sha256` (of the final global
    parameters and buffers), `finished`.

    A resumed run refuses a checkpoint that was written under another configuration, and no two runs train in one folder at the
    same time: rank 0 holds `training.lock`.

    Args:
        config: the resolved configuration. The command line fills it in; from Python, give any mapping that JSON can hold.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}
        self.history: list[dict[str, float]] = []
        self._lock: IO[str] | None = None

    @property
    def config_hash(self) -> str:
        """SHA-256 of what defines the experiment: see `experiment`."""
        return hashlib.sha256(json.dumps(experiment(self.config), sort_keys=True, default=str).encode()).hexdigest()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"trainer.default_root_dir: cannot make the folder {folder}: {error}") from error
        try:
            self._lock = take_lock(folder / TRAINING_LOCK, patience=2.0)
        except LockedError:
            raise ConfigurationError(
                f"another run is training in {folder}; wait for its end, or give another trainer.default_root_dir"
            ) from None
        self._put_aside(folder)
        self.metrics = RoundLines(folder / "metrics.jsonl", afresh=not self.history)
        for entry in self.history:  # where a run goes on in another folder than it began in
            self.metrics.add(entry)
        write_whole(folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        for logger in trainer.loggers if self.config else []:
            logger.log_hyperparams(self.config)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._unlock()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._unlock()

    def _put_aside(self, folder: Path) -> None:
        """Keep the record of another configuration that ran in the same folder."""
        record = folder / "run.json"
        if not record.exists():
            return
        try:
            written = json.loads(record.read_text())
        except ValueError:
            written = None
        other = str(written.get("config_hash", "unknown")) if isinstance(written, dict) else "unreadable"
        if other != self.config_hash:
            kept = record.with_name(f"run.{other[:10]}.json")
            record.replace(kept)
            if (folder / "metrics.jsonl").exists():
                (folder / "metrics.jsonl").replace(folder / f"metrics.{other[:10]}.jsonl")
            Console(stderr=True).print(f"The record of another configuration in {folder} is kept as {kept.name}.")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        entry: dict[str, float] = {"round": trainer.global_step}
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                entry[name.removeprefix("val/")] = float(value)
        entry = {name: value for name, value in entry.items() if math.isfinite(value)}  # nothing was there to measure
        self.history.append(entry)
        if trainer.is_global_zero:
            self.metrics.add(entry)
        self._write(trainer, pl_module, finished=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        record = self._write(trainer, pl_module, finished=trainer.global_step > 0)
        if trainer.is_global_zero:
            show(record, Path(trainer.default_root_dir))

    def _write(self, trainer: L.Trainer, federation: L.LightningModule, *, finished: bool) -> dict[str, Any]:
        assert isinstance(federation, Federation)
        device = trainer.strategy.root_device  # in the end the federation is on the CPU, where NCCL cannot reduce
        peak = trainer.strategy.reduce(torch.tensor(peak_memory_bytes(device), device=device), reduce_op="max")
        if not trainer.is_global_zero:
            return {}
        busy = sum(seconds for phase, seconds in federation.seconds.items() if phase != "evaluation")
        record = {
            "finished": finished,
            "acc": last_mean(self.history, "acc", 1),
            "asr": last_mean(self.history, "asr", 1),
            "acc_last10": last_mean(self.history, "acc", 10),
            "asr_last10": last_mean(self.history, "asr", 10),
            "rounds": trainer.global_step,
            "seed": federation.seed,
            "excluded_updates": federation.excluded_updates,
            "refused_rounds": federation.refused_rounds,
            "executor": federation.clients.way,
            "client_updates_per_second": federation.client_updates / busy if busy else None,
            "seconds": {phase: round(seconds, 4) for phase, seconds in federation.seconds.items()},
            "peak_memory_bytes": int(peak),
            "world_size": trainer.world_size,
            "weights_sha256": weights_sha256(federation.client) if finished else None,
            "config_hash": self.config_hash,
            "hardware": hardware(device),
            "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
            "history": self.history,
            "config": self.config,
        }
        write_whole(Path(trainer.default_root_dir) / "run.json", json.dumps(record, indent=1, default=str) + "\n")
        return record

    # Checkpoints carry history and configuration.

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "config": self.config}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        written = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("config")
        if written is None:
            return
        differences = list(compare(experiment(written, rounds=False), experiment(self.config, rounds=False)))
        if differences:
            raise ConfigurationError(
                "the checkpoint was written under another configuration: "
                + "; ".join(differences[:5])
                + ". Resume with the configuration in config.yaml beside it, or start afresh in another "
                "--trainer.default_root_dir"
            )


def experiment(config: Mapping[str, Any], *, rounds: bool = True) -> dict[str, Any]:
    """The part of a configuration that decides the numbers: not where data lie, not how many ranks, not what is logged.

    Args:
        config: a resolved configuration.
        rounds: whether the number of rounds belongs to it; a resumed run may be made longer.
    """
    chosen = {key: value for key, value in config.items() if key in ("seed_everything", "model", "data")}
    if "data" in chosen:
        chosen["data"] = without_paths(chosen["data"])
    if isinstance(chosen.get("model"), dict):  # neither what changes no bit, nor where attackers' data lie
        model = chosen["model"] = {k: v for k, v in chosen["model"].items() if k not in ("compile_rules", "bucket_bytes")}
        if "attacks" in model:
            model["attacks"] = without_paths(model["attacks"])
        if isinstance(model.get("local"), dict):
            same = ("branches",) if model["local"].get("executor") == "stacked" else ("branches", "executor")
            model["local"] = {key: value for key, value in model["local"].items() if key not in same}
    if rounds and "trainer" in config:
        chosen["max_epochs"] = config["trainer"].get("max_epochs")
    return chosen


def without_paths(value: Any) -> Any:
    """The value without entries called `path`, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items() if key != "path"}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    return value


def compare(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Each setting in which two configurations differ, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from compare(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from compare(one, other, f"{name}[{i}]")
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"


def last_mean(history: list[dict[str, float]], name: str, count: int) -> float | None:
    """Mean of a metric over the last `count` evaluations, None if it was never measured."""
    values = [entry[name] for entry in history if name in entry][-count:]
    return sum(values) / len(values) if values else None


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process held: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine of rank 0."""
    found = {"platform": platform.platform(), "processors": os.cpu_count(), "threads_per_rank": torch.get_num_threads()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": device.type, "name": name, **found}


def installed(package: str) -> str | None:
    """Its version; None where it was not installed but is imported from a folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor's model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def show(record: dict[str, Any], folder: Path) -> None:
    """Print the end of a run for a reader."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    table = Table("", "last round", "mean of last 10", title=f"{record['rounds']} rounds, seed {record['seed']}")
    table.add_row("Acc", percent(record["acc"]), percent(record["acc_last10"]))
    table.add_row("ASR", percent(record["asr"]), percent(record["asr_last10"]))
    console = Console()
    console.print(table)
    total = sum(record["seconds"].values()) or 1.0
    phases = ", ".join(
        f"{phase.replace('_', ' ')} {seconds:.1f} ({seconds / total:.0%})" for phase, seconds in record["seconds"].items()
    )
    rate = record["client_updates_per_second"]
    console.print(f"Seconds: {phases}. {rate:.1f} client updates/s on {record['world_size']} rank(s)." if rate else "")
    if record["excluded_updates"]:
        console.print(f"{record['excluded_updates']} non-finite updates were excluded.")
    if record["refused_rounds"]:
        console.print(f"{record['refused_rounds']} rounds were refused, as the model would not have been finite after them.")
    console.print(f"Results: {folder / 'run.json'}", soft_wrap=True)
