"""What a federation does once before its first round: looks, refuses, and lays out vectors, clients and evaluation sets."""

from __future__ import annotations

from typing import Any

import torch

from fl_lightning.attacks.base import stamp_evaluation
from fl_lightning.checkpoints import resuming
from fl_lightning.clients import Clients
from fl_lightning.data.alike import to_be_alike
from fl_lightning.modules.lightning_modules import attach
from fl_lightning.options.monitors import check_monitors
from fl_lightning.options.remarks import remark
from fl_lightning.server.edits import Edits
from fl_lightning.server.examination import Examination
from fl_lightning.server.resources import compiling_pays, prepare_memory
from fl_lightning.server.round_checks import check_evaluation, check_not_compiled
from fl_lightning.training.optimizers import read_optimizers
from fl_lightning.training.peak_memory import PeakMemory
from fl_lightning.updates.agreement import check_same_data
from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.layout import buffer_layout, parameter_layout


def set_up(federation: Any, stage: str) -> None:
    """Check everything of a `Federation` that can be checked without training, and lay out vectors and evaluation sets.

    Args:
        federation: attached to its Trainer, which has its data.
        stage: Lightning's word for what is to come.

    Raises:
        ConfigurationError: it cannot work, in one line.
    """
    data, trainer = federation.data, federation.trainer
    client, rule, seed = federation.client, federation.aggregator, federation.seed
    device = trainer.strategy.root_device
    resuming.read_for(trainer.strategy.checkpoint_io, stage)
    check_not_compiled(federation)
    attach(client, trainer, device)
    if stage == "fit" and trainer.world_size > 1:
        check_same_data(to_be_alike(data), device)
    federation.check(data)
    federation.local.warn_of_slow_precision(device)
    lay_out(federation, device)
    federation.peak_memory = PeakMemory(device)
    malicious = set(federation.cohort.malicious_clients(seed, len(data.clients)).tolist())
    of_both = (federation.exchange, federation.buffer_exchange), (federation.parameters_layout, federation.buffers_layout)
    federation.clients = Clients(
        client,
        data,
        federation.attacks,
        rule,
        federation.local,
        *of_both,
        seed,
        benign=[number for number in range(len(data.clients)) if number not in malicious],
        recipe=federation.recipe,
        peak_memory=federation.peak_memory,
    )
    federation.examination = Examination(rule, client, *of_both, data, seed, federation.phase)
    federation.edits = Edits(rule, client, federation.parameters_layout, seed, federation.phase)
    if stage == "fit":
        ranks_on_node = trainer.world_size // trainer.num_nodes
        server, _ = read_optimizers(federation.configure_optimizers(), "the server")
        prepare_memory(federation.clients, federation.cohort, rule, server, federation.attacks, ranks_on_node)
    data.to(device)
    if any(attack.watches_steps for attack in federation.attacks):
        federation.last_step = torch.zeros(federation.exchange.num_coordinates, device=device)
    stamp_evaluation(data, federation.attacks, device)
    if stage == "fit":
        check_monitors(trainer, federation)
        remark(trainer, federation.cohort, federation.attacks, rule, data, seed, federation.recipe, client)
        check_evaluation(client.to(device), data, rule)


def lay_out(federation: Any, device: torch.device) -> None:
    """Say where parameters and buffers stand in vectors, and which coordinates are this rank's."""
    federation.parameters_layout = parameter_layout(federation.client)
    federation.buffers_layout = buffer_layout(federation.client, nothing=federation.buffer_policy == "keep")
    trainer, bucket = federation.trainer, federation.bucket_bytes
    coordinates = federation.parameters_layout.num_coordinates / trainer.world_size
    compiled = compiling_pays(federation.compile_rules, coordinates, (trainer.max_epochs, trainer.max_steps), device)
    federation.exchange = Exchange(federation.parameters_layout.layers, device, bucket_bytes=bucket, compiled=compiled)
    federation.buffer_exchange = Exchange(federation.buffers_layout.layers, device, bucket_bytes=bucket)
