import os
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from fl_lightning.configuration import build
from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.launched import launched, launcher
from fl_lightning.machine.srun import SrunEnvironment
from fl_lightning.machine.strategy import FederatedStrategy

QUICKSTART = ["fit", "--config", str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")]

BATCH = {"SLURM_JOB_ID": "4021", "SLURM_JOB_NAME": "run", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
"""What SLURM tells a batch script."""

TASK = {
    **BATCH, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu[03-04,7]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip
"""What srun tells a task: its step takes fewer nodes than the job has."""

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}

ONE = {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the environment of a launcher, and nothing of another's."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "GROUP_RANK", "MASTER_")):
            monkeypatch.delenv(name)

    def set_all(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("values", "devices_and_nodes", "kind"),
    [
        ({}, {}, type(None)),
        (BATCH, {}, LightningEnvironment),
        (TASK, {"devices": 2, "num_nodes": 3}, SrunEnvironment),
        (ONE, {"devices": 1, "num_nodes": 1}, SrunEnvironment),
        ({**TASK, "SLURM_JOB_NAME": "interactive"}, {"devices": 2, "num_nodes": 3}, SrunEnvironment),  # srun within salloc
        ({**ONE, "SLURM_JOB_NAME": "bash"}, {}, LightningEnvironment),  # typed in a shell that srun started
        ({**TASK, **TORCHRUN}, {"devices": 4, "num_nodes": 2}, TorchElasticEnvironment),  # torchrun as srun's task
    ],
)
def test_who_started_the_processes(environment, values, devices_and_nodes, kind):
    environment(values)
    assert launched() == devices_and_nodes
    assert type(launcher()) is kind


def test_ranks_and_where_they_meet(environment):
    environment(TASK)
    ranks = SrunEnvironment()
    assert (ranks.world_size(), ranks.global_rank(), ranks.local_rank(), ranks.node_rank()) == (6, 3, 1, 1)
    assert ranks.main_address == "gpu03"
    assert 1024 < ranks.main_port < 32768
    first = ranks.main_port
    environment({"SLURM_STEP_ID": "3"})
    assert ranks.main_port != first  # two steps of a job at once
    environment({"MASTER_ADDR": "gpu03-ib", "MASTER_PORT": "999"})
    assert (ranks.main_address, ranks.main_port) == ("gpu03-ib", 999)


def test_one_node_needs_no_name_service(environment):
    environment(ONE)
    assert SrunEnvironment().main_address == "127.0.0.1"


def test_uneven_nodes_are_refused(environment):
    environment({**TASK, "SLURM_STEP_NUM_TASKS": "7"})
    with pytest.raises(ConfigurationError, match=r"7 tasks on 3 nodes.*--ntasks-per-node"):
        launched()


def test_other_devices_than_tasks_are_refused(environment):
    environment(TASK)
    SrunEnvironment().validate_settings(num_devices=2, num_nodes=3)
    with pytest.raises(
        ConfigurationError, match=r"trainer.devices is 1 and trainer.num_nodes 1, but srun started 6 tasks on 3 nodes"
    ):
        SrunEnvironment().validate_settings(num_devices=1, num_nodes=1)


def test_the_trainer_goes_by_it(environment):
    environment(ONE)
    strategy = build(QUICKSTART).trainer.strategy
    assert isinstance(strategy, FederatedStrategy)
    assert type(strategy.cluster_environment) is SrunEnvironment  # not SLURMEnvironment, which would answer SIGUSR1 by itself


def test_plugins_of_the_users_own_stay(environment):
    environment(ONE)
    own = ["--trainer.plugins", "lightning.pytorch.plugins.environments.LightningEnvironment"]
    strategy = build([*QUICKSTART, *own]).trainer.strategy
    assert isinstance(strategy, FederatedStrategy)
    assert type(strategy.cluster_environment) is LightningEnvironment
