"""A slow link between two network namespaces, for kernels without `tc ... netem`.

    python -m benchmarks.slow_link FIRST SECOND --mbit 100 --delay-ms 10 --addresses 10.214.0.1/24 10.214.0.2/24

Makes a device `cable` in each of two namespaces, as root, and carries packets between them until it is ended: each way they
leave one after the other at so many bits per second, and arrive so much later. Prints a line once both devices are up. Of more
packets than LIMIT on their way the last are dropped, as netem does.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LONGEST = 65536
LIMIT = 1000


class Direction:
    """One way.

    Args:
        source: descriptor of the device that packets come out of.
        target: of that which they go into.
        rate: bytes per second.
        delay: seconds.
    """

    def __init__(self, source: int, target: int, rate: float, delay: float) -> None:
        self.source, self.target, self.rate, self.delay = source, target, rate, delay
        self.travelling: deque[tuple[float, bytes]] = deque()  # when a packet arrives
        self.free = 0.0  # when the link is

    def take(self, now: float) -> None:
        """Send a packet off."""
        packet = os.read(self.source, LONGEST)
        if len(self.travelling) < LIMIT:
            self.free = max(self.free, now) + len(packet) / self.rate
            self.travelling.append((self.free + self.delay, packet))

    def deliver(self, now: float) -> None:
        """Hand over what has arrived."""
        while self.travelling and self.travelling[0][0] <= now:
            os.write(self.target, self.travelling.popleft()[1])

    @property
    def next(self) -> float:
        """When the next one arrives."""
        return self.travelling[0][0] if self.travelling else float("inf")


def device(namespace: str, address: str) -> int:
    """Make one, move it into the namespace, and give the descriptor of its other end."""
    made = os.open("/dev/net/tun", os.O_RDWR)
    name = fcntl.ioctl(made, TUNSETIFF, struct.pack("16sH22x", b"slow%d", IFF_TUN | IFF_NO_PI))[:16].rstrip(b"\0").decode()
    for words in (
        f"link set {name} netns {namespace} name cable",
        f"-n {namespace} address add {address} dev cable",
        f"-n {namespace} link set cable up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="A slow link between two network namespaces, in user space.")
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--addresses", nargs=2, required=True, help="of the two ends, with the length of the prefix")
    parser.add_argument("--mbit", type=float, default=100.0, help="10^6 bits per second, each way")
    parser.add_argument("--delay-ms", type=float, default=10.0, help="from one end to the other")
    options = parser.parse_args()
    first, second = (device(*end) for end in zip(options.namespaces, options.addresses, strict=True))
    rate, delay = options.mbit * 1e6 / 8, options.delay_ms / 1000
    ways = {first: Direction(first, second, rate, delay), second: Direction(second, first, rate, delay)}
    with contextlib.suppress(OSError):  # a link is not late because ranks keep the cores busy
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("up", flush=True)
    while True:
        wait = min(way.next for way in ways.values()) - time.monotonic()
        ready, _, _ = select.select([*ways], [], [], None if wait == float("inf") else max(0.0, wait))
        now = time.monotonic()
        for source in ready:
            ways[source].take(now)
        for way in ways.values():
            way.deliver(now)


if __name__ == "__main__":
    main()
