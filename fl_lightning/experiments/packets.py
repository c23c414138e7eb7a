"""Messages between a sweep, the processes that its runs are forked from, and these runs: JSON on Unix sockets of packets."""

import json
import socket
from typing import Any

MOST_BYTES = 2**17
"""Of one message."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that packets go between."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, message: Any, flags: int = 0) -> bool:
    """Send a message; says whether anybody is there to receive it."""
    try:
        to.send(json.dumps(message).encode(), flags)
    except OSError:
        return False
    return True


def receive(source: socket.socket) -> dict[str, Any]:
    """The next message; empty where nobody is there to send one."""
    try:
        return json.loads(source.recv(MOST_BYTES) or b"{}")
    except OSError:
        return {}
