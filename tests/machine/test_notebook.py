"""Federations in a notebook's process, which Lightning tells by Python being interactive."""

import os
from typing import Any

import lightning.fabric.utilities.imports
import lightning.pytorch.trainer.connectors.accelerator_connector
import pytest
import torch.distributed as dist
from tiny import TinyClient, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import CohortSampler, ConfigurationError, Simulation
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks.run_record import weights_sha256


@pytest.fixture
def notebook(monkeypatch):
    for module in (lightning.fabric.utilities.imports, lightning.pytorch.trainer.connectors.accelerator_connector):
        monkeypatch.setattr(module, "_IS_INTERACTIVE", True)
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # of scripts that started ranks here
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():  # the address at which ranks met
        del os.environ[name]


def test_one_device_trains_in_the_notebooks_own_process_and_several_in_forks_of_it_with_the_same_bits(notebook):
    federations = [tiny_federation() for _ in range(2)]
    trainer = fit(federations[0], rounds=2)
    assert trainer.strategy.launcher is None
    assert dist.is_initialized()  # which forks would inherit
    trainer = fit(federations[1], rounds=2, devices=2)
    assert (trainer.global_rank, trainer.world_size) == (0, 2)
    assert weights_sha256(federations[1].client) == weights_sha256(federations[0].client)


def test_a_simulation_on_several_devices_of_a_notebook_has_a_result(notebook, tmp_path):
    given: Any = {"folder": tmp_path, "rounds": 2, "accelerator": "cpu", "logger": False}
    result = Simulation(TinyClient, FedAvg(), tiny_data(), cohort=CohortSampler(4, 0.0), devices=2, **given).run()
    assert (result.record["world_size"], result.history["round"].tolist()) == (2, [1, 2])
    assert weights_sha256(result.client) == result.record["weights_sha256"]


def test_a_mistake_that_a_fork_finds_is_one_line(notebook):
    with pytest.raises(ConfigurationError, match=r"clients_per_round") as caught:
        fit(tiny_federation(cohort=CohortSampler(clients_per_round=1000)), devices=2)
    assert "\n" not in str(caught.value)


def test_predictions_that_would_be_lost_are_refused(notebook):
    with pytest.raises(ConfigurationError, match=r"predict with Trainer\(devices=1\)"):
        tiny_trainer(devices=2).predict(tiny_federation(), tiny_data())
    assert len(tiny_trainer().predict(tiny_federation(), tiny_data()) or []) == 7


def test_several_nodes_are_refused_in_a_notebook(notebook):
    with pytest.raises(ConfigurationError, match=r"num_nodes=2.*start it by torchrun"):
        tiny_trainer(num_nodes=2)


def test_a_script_starts_its_ranks_as_before():
    assert type(tiny_trainer(devices=2).strategy.launcher).__name__ == "_SubprocessScriptLauncher"
