"""Why a run ended, from its exit status and what it printed.

Where torchrun started several ranks, it ends with an error of its own (`ChildFailedError`) and a table of theirs. Of those some
only say that another rank was lost; the reason is what that one printed, or the signal that killed it.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.machine.lost_ranks import ENDED, LOST
from fl_lightning.machine.stopping import ENDED_BY_SIGTERM

ROOT_CAUSE = "Root Cause (first observed failure)"
FAILED_RANK = re.compile(r"^\s*rank\s+: (\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s+: (-?\d+) ", re.MULTILINE)
RAISED = re.compile(r"(?:\[rank(?P<rank>\d+)\]:\s*)?(?P<error>[\w.]+(?:Error|Exception|Interrupt|Exit|Failed)\b.*)")
OF_TORCHRUN = ("torch.distributed.elastic.", "ChildFailedError", "SignalException")

TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit statuses of a process that SIGTERM ended."""


@dataclass(frozen=True)
class Log:
    """What one attempt printed.

    Attributes:
        lines: without white space around them.
        failed: exit status of each rank that torchrun lists, the one that failed first in front.
    """

    lines: list[str]
    failed: list[tuple[int, int]]


def read(log: Path, began: int = 0) -> Log:
    """The part of a log from byte `began` on."""
    with log.open("rb") as file:
        file.seek(began)
        text = file.read().decode(errors="replace")
    table, _, root = text.rpartition(ROOT_CAUSE)
    failed = [(int(rank), int(status)) for part in (root, table) if table for rank, status in FAILED_RANK.findall(part)]
    return Log([line.strip() for line in text.splitlines()], failed)


def was_stopped(log: Log, status: int) -> bool:
    """Whether a run was asked to stop, by SIGTERM to it, to torchrun or to the rank that ended first."""
    first = log.failed[0][1] if log.failed else status
    asked = any(re.search(r"SignalException: Process \d+ got signal: (2|15)$", line) for line in log.lines)
    return status == 0 or status in TERMINATED or first in TERMINATED or asked


def why(log: Log, status: int) -> str:
    """The reason of a failure, on one line."""
    if status < 0:
        return killed(-status)
    if log.failed and log.failed[0][1] < 0:
        rank, code = log.failed[0]
        return f"rank {rank} was {killed(-code)}"
    own = [line for line in log.lines if line.startswith("error: ")]
    reasons = [line for line in own if not seen_of_others(line)]
    raised = reasons_raised(log)
    if reasons or raised:
        return (reasons or raised)[-1]
    for rank, code in log.failed:  # a rank that was killed is listed second where another one noticed sooner
        if code < 0 and code not in TERMINATED:
            return f"rank {rank} was {killed(-code)}"
    if status > 128 and status - 128 in set(signal.Signals):
        return killed(status - 128)
    said = [line for line in log.lines if re.search(r"\w", line) and not line.startswith("[rank")]
    return (own or said or [f"exit status {status}"])[-1]


def reasons_raised(log: Log) -> list[str]:
    """The errors that were raised and say of no other rank; those of the rank that failed first, if it raised any."""
    found = [match for line in log.lines if (match := RAISED.match(line))]
    found = [match for match in found if not match["error"].startswith(OF_TORCHRUN) and not seen_of_others(match["error"])]
    of_first = [match for match in found if log.failed and match["rank"] == str(log.failed[0][0])]
    return [match["error"] for match in of_first or found]


def seen_of_others(line: str) -> bool:
    """Whether a message is only of what became of another rank, or of SIGTERM, which torchrun sends to those that are left."""
    return LOST in line or ENDED_BY_SIGTERM in line or bool(ENDED.search(line))


def killed(number: int) -> str:
    """A signal that ended a process, in words.

    >>> killed(9)
    'killed by signal 9, most likely out of memory'
    >>> killed(11)
    'killed by signal 11 (SIGSEGV)'
    """
    if number == signal.SIGKILL:
        return f"killed by signal {number:d}, most likely out of memory"
    return f"killed by signal {number} ({signal_name(number)})"


def signal_name(number: int) -> str:
    """Its name, as far as this system has one."""
    names: Sequence[str] = [known.name for known in signal.Signals if known == number]
    return names[0] if names else "unknown here"
