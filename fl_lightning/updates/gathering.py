"""What every rank has, on every rank."""

import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

PACKET_BYTES = 4096
"""Of an object on its way: one that fits in takes one collective, a larger one two."""

LENGTH_BYTES = 8

all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


def gather_objects(item: Any, device: torch.device) -> list[Any]:
    """A small picklable object of every rank, in rank order."""
    return begin_gathering(item, device)()


def begin_gathering(item: Any, device: torch.device) -> Callable[[], list[Any]]:
    """The same, on its way until what is returned here is called, on all ranks in the same order among collectives."""
    pickled = pickle.dumps(item)
    begun = _begin_gathering_packets(pickled, PACKET_BYTES, device)

    def finish() -> list[Any]:
        packets = begun()
        longest = max(int.from_bytes(packet[:LENGTH_BYTES]) for packet in packets)
        if longest > PACKET_BYTES - LENGTH_BYTES:  # which all ranks see alike
            packets = _begin_gathering_packets(pickled, LENGTH_BYTES + longest, device)()
        return [pickle.loads(packet[LENGTH_BYTES:]) for packet in packets]

    return finish


def _begin_gathering_packets(message: bytes, size: int, device: torch.device) -> Callable[[], list[bytes]]:
    """From every rank the length of its message, then as much of it as `size` bytes have room for."""
    packet = (len(message).to_bytes(LENGTH_BYTES) + message)[:size].ljust(size, b"\0")
    own = torch.frombuffer(bytearray(packet), dtype=torch.uint8).to(device)
    gathered = own.new_empty(dist.get_world_size() * size)
    work = all_gather(gathered, own, async_op=True)

    def finish() -> list[bytes]:
        work.wait()
        return [row.numpy().tobytes() for row in gathered.cpu().view(-1, size)]

    return finish
