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
    return any(mallopt(M_MMAP_THRESHOLD, size) for size in OWN_MAPPING_BYTES) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
