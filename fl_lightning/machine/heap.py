"""Freed memory stays with the process, for the next step to take.

glibc hands free memory at the top of its heap back to the system, and has it handed out anew, page by page and zeroed, when it
is asked for again. A training step on a CPU does so with every activation, and a round with every vector of all coordinates: a
quarter of a small CNN's step is page faults, and as much of a compiled rule's time.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of mallopt's parameters, as in glibc's malloc.h."""

OWN_MAPPING_BYTES = (128 * 2**20, 32 * 2**20)
"""Blocks from this size on go back to the system when they are freed; the second is what older versions of glibc allow."""

DEFAULT_BYTES = 2**17
"""Of both thresholds, as a process begins."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Environment variables by which users tell malloc what to do."""


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed in blocks of less than 128 MiB, up to 2 GiB.

    The process then holds on to the most that it ever used in such blocks, and to gaps between them: a round's exchange takes
    up to a third more. Says whether malloc does so: another C library than glibc has no such switch, and settings in the
    environment are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    State.keeping = any(mallopt(M_MMAP_THRESHOLD, size) for size in OWN_MAPPING_BYTES)
    return State.keeping and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_freed_memory_back() -> None:
    """Undo `keep_freed_memory`, so that what an earlier run of this process kept is free for the next one."""
    if State.keeping:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_BYTES)
        libc.malloc_trim(0)
        State.keeping = False


class State:
    """The process's, as malloc is."""

    keeping = False
