"""What a federation writes into a checkpoint beside its weights, and how it goes on from one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fl_lightning.checkpoints import forking, resuming, sharded_state
from fl_lightning.checkpoints.trained import weights_for
from fl_lightning.checkpoints.warm_start import WarmStart

COUNTED = ("client_updates", "excluded_updates", "refused_rounds")
"""What is counted over all rounds, also those before a resume."""


def write(federation: Any, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what a `Federation` that is set up knows beside its weights; on every rank.

    Rank 0's parameters are everyone's; what rules and clients remember is every rank's own.
    """
    clients = federation.clients
    kept = sharded_state.entry(federation.aggregator, federation.exchange.start, clients.memory.rows, clients.memory.size)
    if kept is not None:
        checkpoint[sharded_state.KEY] = kept
    checkpoint["federation"] = {
        "attacks": [attack.state_dict() for attack in federation.attacks],
        "seed": federation.seed,
        "seconds": dict(federation.seconds),
        "extra_bytes": dict(federation.peak_memory.taken),
        "evaluated": federation.evaluations.round,
        "start_from": federation.warm_start.record,
        **{name: getattr(federation, name) for name in COUNTED},
    }


def read(federation: Any, checkpoint: dict[str, Any]) -> None:
    """Take what `write` has written; the weights are loaded by Lightning, into a model that they fit.

    Raises:
        ConfigurationError: it is no checkpoint that this federation can go on from.
    """
    trainer = federation.trainer
    path = trainer.ckpt_path
    record = resuming.record_of(checkpoint, federation.seed, trainer.max_epochs if trainer.state.fn == "fit" else None)
    weights_for(federation.client, checkpoint, path, "give the model that it was trained with, or start afresh")
    federation.warm_start = WarmStart.of(record.get("start_from"))
    forking.settle(checkpoint, federation.state_dict(), federation.attacks)
    for attack, state in zip(federation.attacks, record["attacks"], strict=True):
        attack.load_state_dict(state)
    if sharded_state.KEY in checkpoint and path is not None:
        own = federation.exchange  # of however many ranks wrote it, this one's part
        part = resuming.parts(checkpoint[sharded_state.KEY], path, own.start, own.stop, own.rank, own.world)
        federation.clients.memory.rows = sharded_state.recall(part, federation.aggregator, own.device)
    federation.rounds_done = int(checkpoint["global_step"])
    federation.seconds = defaultdict(float, record["seconds"])
    federation.peak_memory.taken = dict(record.get("extra_bytes", {}))
    federation.evaluations.round = record.get("evaluated", -1)
    for name in COUNTED:
        setattr(federation, name, record.get(name, 0))
