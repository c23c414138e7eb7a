import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from torch import nn
from fl_lightning.machine.heap import keep_freed_memory

kept = KEEP and keep_freed_memory()
torch.set_num_threads(1)
model, inputs = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()), torch.zeros(64, 3, 32, 32)

def step():
    model(inputs).sum().backward()
    model.zero_grad()

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}


def page_faults(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether malloc keeps freed memory, and the page faults of ten steps of a CNN, in a process of its own."""
    script = FAULTS.replace("KEEP", str(keep))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_steps_do_not_ask_the_system_for_memory_again() -> None:
    kept, faults = page_faults(keep=True)
    assert kept
    # By itself malloc may learn from the first blocks that are freed to keep others like them; told its threshold, it does not.
    assert 3 * faults < page_faults(keep=False, MALLOC_MMAP_THRESHOLD_=str(128 * 2**10))[1]


def test_what_the_user_told_malloc_is_left_alone() -> None:
    assert page_faults(keep=True, MALLOC_TRIM_THRESHOLD_="1000000")[0] is False


RSS = """
import torch
from fl_lightning.machine.heap import give_freed_memory_back, keep_freed_memory

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

def use():
    blocks = [torch.ones(2**20) for _ in range(100)]  # 400 MiB
    blocks.clear()

keep_freed_memory()
at_first = held()
use()
kept = held()
give_freed_memory_back()
print(kept - at_first, held() - at_first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_was_kept_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RSS], env=clean_environment(), capture_output=True, text=True, check=True)
    kept, afterwards = map(int, done.stdout.split())
    assert kept > 390
    assert afterwards < 20
