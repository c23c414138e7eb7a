"""Whether all ranks were given the same data and hold the same global model, as they must.

Each deals out its own copy of the data, and steps its own copy of the model with what it was sent.
"""

import hashlib

import torch
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.bits import as_bytes
from fl_lightning.modules.frozen_base import frozen_bases
from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.gathering import gather_objects
from fl_lightning.updates.layout import named_state


def check_agreement(module: nn.Module, exchange: Exchange, when: str) -> None:
    """Compare digests of all parameters and buffers; all ranks must call it. One rank alone looks at a frozen base only.

    Args:
        module: the global model.
        exchange: between the ranks.
        when: for the message, for example "after round 3".

    Raises:
        ConfigurationError: on all ranks, if a tensor of one differs from rank 0's; it names the first. On any rank, if its
            frozen base is not what it was at first.
    """
    for part in frozen_bases(module).values():
        part.check_base(when)
    if not exchange.distributed:
        return
    of_ranks = exchange.collect(digests(module))
    for rank, found in enumerate(of_ranks):
        for name in {**of_ranks[0], **found}:
            if found.get(name) != of_ranks[0].get(name):
                others = sum(of_ranks[0].get(n) != found.get(n) for n in {**of_ranks[0], **found}) - 1
                raise ConfigurationError(
                    f"{when} the ranks hold different global models: {name} of rank {rank} is not rank 0's, nor are {others} "
                    "other tensors; a callback, an attack or the server's optimizer changes or draws something on its own on "
                    "each rank: results of such a run mean nothing"
                )


def check_same_start(module: nn.Module, exchange: Exchange, round_number: int | None) -> None:
    """Compare what ranks go on from; all ranks must call it. Nothing is done where there is one rank.

    Nodes that share no folder have checkpoints of their own, or none: with `last` each takes what it finds.

    Args:
        module: the global model, as it was read.
        exchange: between the ranks.
        round_number: the round that this rank's checkpoint was written after; None where it has none.

    Raises:
        ConfigurationError: on all ranks, if one differs from rank 0.
    """
    if not exchange.distributed:
        return
    base = [digest(part.base_sha256) for part in frozen_bases(module).values()]
    of_ranks = exchange.collect((round_number, None if round_number is None else digests(module), base))
    for rank, found in enumerate(of_ranks):
        if found[2] != of_ranks[0][2]:
            raise ConfigurationError(
                f"rank {rank} has built another frozen base of {type(module).__name__} than rank 0, and a base is never sent; "
                "all ranks must read the same files, or draw it from the same seed"
            )
        if found != of_ranks[0]:
            rounds = [start[0] for start in (of_ranks[0], found)]
            mine, its = ("no checkpoint" if done is None else f"the checkpoint of round {done}" for done in rounds)
            its = its if rounds[0] != rounds[1] else f"another checkpoint of round {rounds[1]}"
            raise ConfigurationError(
                f"the ranks would go on from different rounds or weights: rank 0 has {mine}, rank {rank} {its}; where nodes "
                "share no folder, copy last.ckpt and, if it is there, last.ckpt.shards from the node that wrote the later one "
                "into the run's folder on each, or name a folder that all nodes see (trainer.default_root_dir)"
            )


def check_same_data(given: dict[str, torch.Tensor], device: torch.device) -> None:
    """Compare digests of what decides who trains on what; all ranks must call it.

    Args:
        given: tensors by what they are, in words.
        device: of this rank.

    Raises:
        ConfigurationError: on all ranks, if something of one differs from rank 0's; it names the first.
    """
    of_ranks = gather_objects({name: digest(tensor) for name, tensor in given.items()}, device)
    for name in given:
        differing = [rank for rank, found in enumerate(of_ranks) if found.get(name) != of_ranks[0].get(name)]
        if differing:
            raise ConfigurationError(
                f"the ranks were given different data: {name} of rank {differing[0]} are not rank 0's; every rank runs the "
                "whole script, so seed whatever it draws before that (L.seed_everything(0)), also a partition's own generator"
            )


def digests(module: nn.Module) -> dict[str, bytes]:
    """16 bytes for each parameter and buffer, by name."""
    return {name: digest(tensor) for name, tensor in named_state(module)}


def digest(tensor: torch.Tensor) -> bytes:
    """BLAKE2 of a tensor's type, shape and values."""
    found = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    found.update(as_bytes(tensor))
    return found.digest()
