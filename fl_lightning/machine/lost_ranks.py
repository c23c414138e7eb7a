"""Ranks that others wait for in vain: stopped, killed, or ended by an error of their own.

A collective says so in words of the library that waited. Whoever reads them asks which rank it was, for how long the others
waited, and how the run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fl_lightning.errors import ConfigurationError

WAITED = re.compile(
    r"[Tt]imed out (?:waiting|after) \d+ ?ms|[Ww]ait timeout after|collective operation timeout|Application timeout"
)
"""A rank is there, and has sent nothing for as long as the group allows."""

ENDED = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed|remote process exited|Connection refused"
)
"""A rank's process is not there any more."""

UNMET = re.compile(r"connectFullMesh failed")
"""Ranks have each other's addresses, and do not reach each other there."""

LOST = "another rank has ended"
"""In the message where one has ended; it is never the reason why a run failed, only what the other ranks saw of it."""


GO_ON = "go on with --ckpt_path last if there is a checkpoint"
"""What to do where nothing more is known."""


class LostRankError(ConfigurationError):
    """This rank cannot go on, as another one does not."""


@contextmanager
def explained(timeout_seconds: float, advice: Callable[[], str] = lambda: GO_ON) -> Iterator[None]:
    """Raise what a collective says of a rank that is lost as an error of one line, with advice on how to go on.

    Raises:
        LostRankError: a rank did not answer for so long, or has ended.
    """
    try:
        yield
    except RuntimeError as error:
        message = what_happened(error, timeout_seconds, advice)
        if message is None:
            raise
        raise LostRankError(message) from error


def what_happened(error: BaseException | None, timeout_seconds: float, advice: Callable[[], str] = lambda: GO_ON) -> str | None:
    """What an exception, or one that it was raised because of, says of another rank; None if nothing."""
    while error is not None:
        if isinstance(error, RuntimeError) and UNMET.search(str(error)):
            return (
                f"the ranks do not reach each other ({address(str(error))}): {LOST}, or a node told the others an address that "
                "is no use to them, as where /etc/hosts has 127.0.1.1 for its own name; launch/torchrun.sh chooses the network "
                "interface, elsewhere set GLOO_SOCKET_IFNAME on each node to the one that the others reach (`ip address`); "
                f"{advice()}"
            )
        if isinstance(error, RuntimeError) and WAITED.search(str(error)):
            return (
                f"another rank has sent nothing for {timeout_seconds:g} s: it was stopped, hangs, or takes longer to start "
                "or for its clients; how long to wait is set by --trainer.strategy fl_lightning.FederatedStrategy "
                f"--trainer.strategy.timeout_seconds SECONDS; {advice()}"
            )
        if isinstance(error, RuntimeError) and ENDED.search(str(error)):
            return f"{LOST}: by an error, which it printed, or killed, as the system does where memory runs out; {advice()}"
        error = error.__cause__ or error.__context__
    return None


def address(said: str) -> str:
    """Where a connection was tried, of gloo's words.

    >>> address("pair.cc:152] timed out connecting: SO_ERROR: Connection refused, remote=[127.0.1.1]:19378$0")
    'nobody at 127.0.1.1'
    """
    found = re.search(r"remote=\[([^\]]+)\]", said)
    return f"nobody at {found[1]}" if found else "no address is known"
