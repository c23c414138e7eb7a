"""Processes that srun started."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

from fl_lightning.errors import ConfigurationError

FIRST_PORT, PORTS = 10_000, 20_000
"""Below 32768, from where on Linux hands out ports by itself."""

INTERACTIVE = ("bash", "interactive")
"""Names that SLURM gives to jobs in which somebody types: their shell is srun's task, not the training."""


class SrunEnvironment(ClusterEnvironment):
    """Ranks, and where they meet, from what srun tells its tasks.

    Takes the place of Lightning's `SLURMEnvironment`, which refuses `srun -n2`, goes by the job where srun may have started a
    part of it, and answers SIGUSR1 by a checkpoint in the middle of a round, on each rank at another moment. Requeueing is
    left to the job's script (`launch/`), and `last.ckpt` has the last whole round.

    Environment:
        MASTER_ADDR: host of rank 0; default: the step's first node.
        MASTER_PORT: a free port there; default: one derived from job and step.
    """

    @staticmethod
    def detect() -> bool:
        """Whether srun started this process. A batch script has SLURM's variables too, but no step."""
        if "SLURM_STEP_ID" not in os.environ or "SLURM_PROCID" not in os.environ:
            return False
        return tasks() > 1 or os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        return os.environ.get("MASTER_ADDR") or ("127.0.0.1" if nodes() == 1 else first)

    @property
    def main_port(self) -> int:
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
        return int(os.environ.get("MASTER_PORT") or FIRST_PORT + (job + 1009 * step) % PORTS)

    def world_size(self) -> int:
        return tasks()

    def set_world_size(self, size: int) -> None:
        """srun has set it."""

    def global_rank(self) -> int:
        return int(os.environ["SLURM_PROCID"])

    def set_global_rank(self, rank: int) -> None:
        """srun has set it."""

    def local_rank(self) -> int:
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        return int(os.environ["SLURM_NODEID"])

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        if (num_devices * num_nodes, num_nodes) != (tasks(), nodes()):
            raise ConfigurationError(
                f"trainer.devices is {num_devices} and trainer.num_nodes {num_nodes}, but srun started {tasks()} tasks on "
                f"{nodes()} nodes; leave both settings out, or start as many tasks"
            )


def tasks() -> int:
    """How many processes srun started."""
    return int(os.environ["SLURM_STEP_NUM_TASKS"])


def nodes() -> int:
    """On how many nodes."""
    return int(os.environ["SLURM_STEP_NUM_NODES"])


def per_node() -> int:
    """Processes on each node; srun numbers them node by node, which Lightning's local ranks go by.

    Raises:
        ConfigurationError: there are not as many on each.
    """
    if tasks() % nodes():
        raise ConfigurationError(f"srun started {tasks()} tasks on {nodes()} nodes; start as many on each (--ntasks-per-node)")
    return tasks() // nodes()
