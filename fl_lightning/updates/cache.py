"""How much a CPU core can work on without going to memory."""

from functools import lru_cache
from pathlib import Path

FALLBACK_BYTES = 2 * 2**20
LEAST_BYTES, MOST_BYTES = 2**18, 4 * 2**20

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@lru_cache(maxsize=1)
def working_set_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of a piece that is worked on many times over: half of a core's share of the outer caches, within bounds.

    Results never depend on it.

    Args:
        caches: where Linux describes them; elsewhere a middling size is taken.
    """
    shares = []
    for index in caches.glob("index*"):
        try:
            level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
            cores = count_listed((index / "shared_cpu_list").read_text())
            shares += [int(size[:-1]) * UNITS[size[-1]] // cores] if level > 1 else []
        except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
            return FALLBACK_BYTES
    return max(LEAST_BYTES, min(MOST_BYTES, sum(shares) // 2)) if shares else FALLBACK_BYTES


def count_listed(ranges: str) -> int:
    """How many numbers a list of ranges names.

    >>> count_listed("0-3,8,10-11")
    7
    """
    ends = [part.split("-") for part in ranges.strip().split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
