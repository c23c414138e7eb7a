"""Freed memory stays with the process, for the next step to take.

glibc hands free memory at the top of its heap back to the system, and has it handed out anew, page by page and zeroed, when it
is asked for again. A training step on a CPU does so with every activation: for a small CNN a quarter of the step is page faults.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of mallopt's parameters, as in glibc's malloc.h."""

OWN_MAPPING_BYTES = 32 * 2**20
"""Blocks from this size on go back to the system when they are freed, as by default: the most that every glibc allows."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Environment variables by which users tell malloc what to do."""


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed in blocks of less than 32 MiB, up to 2 GiB.

    The process then holds on to the most that it ever used in such blocks. Says whether malloc does so: another C library than
    glibc has no such switch, and settings in the environment are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
