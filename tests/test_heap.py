import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from fl_lightning.heap import keep_freed_memory
from fl_lightning.models import CNN

kept = KEEP and keep_freed_memory()
model, inputs, targets = CNN(), torch.zeros(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)

def step():
    model.training_step((inputs, targets), 0).backward()
    model.zero_grad()

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether malloc keeps freed memory, and the page faults of ten steps of a CNN, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    script = FAULTS.replace("KEEP", str(keep))
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, check=True, timeout=120
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_steps_do_not_ask_the_system_for_memory_again() -> None:
    kept, faults = page_faults(keep=True)
    assert kept
    assert 3 * faults < page_faults(keep=False)[1]


def test_what_the_user_told_malloc_is_left_alone() -> None:
    assert page_faults(keep=True, MALLOC_TRIM_THRESHOLD_="1000000")[0] is False
