"""What every rank has, on every rank."""

import pickle
from typing import Any

import torch
import torch.distributed as dist

PACKET_BYTES = 4096
"""Of an object on its way: one that fits in takes one collective, a larger one two."""

LENGTH_BYTES = 8

all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


def gather_objects(item: Any, device: torch.device) -> list[Any]:
    """A small picklable object of every rank, in rank order."""
    pickled = pickle.dumps(item)
    packets = _gather_packets(pickled, PACKET_BYTES, device)
    longest = max(int.from_bytes(packet[:LENGTH_BYTES]) for packet in packets)
    if longest > PACKET_BYTES - LENGTH_BYTES:  # which all ranks see alike
        packets = _gather_packets(pickled, LENGTH_BYTES + longest, device)
    return [pickle.loads(packet[LENGTH_BYTES:]) for packet in packets]


def _gather_packets(message: bytes, size: int, device: torch.device) -> list[bytes]:
    """From every rank the length of its message, then as much of it as `size` bytes have room for."""
    packet = (len(message).to_bytes(LENGTH_BYTES) + message)[:size].ljust(size, b"\0")
    own = torch.frombuffer(bytearray(packet), dtype=torch.uint8).to(device)
    gathered = own.new_empty(dist.get_world_size() * size)
    all_gather(gathered, own)
    return [row.numpy().tobytes() for row in gathered.cpu().view(-1, size)]
