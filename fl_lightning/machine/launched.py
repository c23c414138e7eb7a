"""Who has started the processes, torchrun, srun or nobody, and what a Trainer is to be told of it."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment

from fl_lightning.machine import srun
from fl_lightning.machine.srun import SrunEnvironment


def as_launched(devices: Any, plugins: Any) -> dict[str, Any]:
    """The Trainer's arguments that follow from who started the processes, where `devices` and `plugins` leave that open."""
    started_by = launcher()
    given = {} if started_by is None or plugins is not None else {"plugins": [started_by]}
    return {**given, **(launched() if devices == "auto" else {})}


def launched() -> dict[str, int]:
    """`devices` and `num_nodes` as torchrun or srun started the processes; empty where neither did."""
    if TorchElasticEnvironment.detect():
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return {"devices": per_node, "num_nodes": int(os.environ["WORLD_SIZE"]) // per_node}
    if SrunEnvironment.detect():
        return {"devices": srun.per_node(), "num_nodes": srun.nodes()}
    return {}


def launcher() -> ClusterEnvironment | None:
    """What tells Lightning its ranks; None where it may find out by itself.

    It must be told inside SLURM's jobs: torchrun's processes there are torchrun's, those of a batch script without srun are
    nobody's, and the rest are srun's.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SrunEnvironment.detect():
        return SrunEnvironment()
    return LightningEnvironment() if "SLURM_JOB_ID" in os.environ else None
