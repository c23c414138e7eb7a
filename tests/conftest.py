"""Settings for all tests: one thread per process, as the law of equal bits asks for on CPUs."""

import os
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, also in the ranks that tests start
os.environ.setdefault(  # what lies there takes seconds to make anew
    "MPLCONFIGDIR", os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "matplotlib")
)

import pytest
import torch

import fl_lightning.machine.strategy  # noqa: F401  registers strategy="federated"

torch.set_num_threads(1)


SLOW_WEIGHT = 100
"""As many other tests as a slow one stands for."""


def pytest_collection_modifyitems(items):
    """The files that take longest go first, so that processes that share the files end at about the same time."""
    weights = Counter()
    for item in items:
        weights[item.path] += SLOW_WEIGHT if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory):
    """What the package keeps for later lands in a folder of this run of the tests, and none of it was there before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    """Whatever a test writes by a relative path lands in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a command adds the folder that it runs in


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """What Lightning leaves behind for the whole process, a test before this one did not."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # with it, every Trainer seeds the global generators anew
    torch.use_deterministic_algorithms(False)
