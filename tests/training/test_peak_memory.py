"""What stretches of work take in memory beyond what was held before."""

import os

import pytest
import torch

from fl_lightning.training.peak_memory import PeakMemory, peak_memory_bytes

CPU = torch.device("cpu")
MEBIBYTE = 2**20
SLACK = 16 * MEBIBYTE
"""What an interpreter may take or give back meanwhile; blocks below are of 64 MiB and more, which glibc maps on their own
unless told otherwise."""


@pytest.fixture
def peak() -> PeakMemory:
    found = PeakMemory(CPU)
    if not found.can_look:
        pytest.skip("the system does not let a process set its highest memory back")
    return found


def block(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE // 4)


def test_a_stretch_inside_another_counts_for_itself(peak: PeakMemory):
    with peak.during("outer"):
        first = block(256)
        del first
        with peak.during("inner"):
            second = block(512)
            del second
    assert abs(peak.taken["outer"] - 256 * MEBIBYTE) < SLACK
    assert abs(peak.taken["inner"] - 512 * MEBIBYTE) < SLACK


def test_the_most_of_several_stretches_is_kept(peak: PeakMemory):
    for mebibytes in (256, 512, 256):
        with peak.during("part"):
            held = block(mebibytes)
            del held
    assert abs(peak.taken["part"] - 512 * MEBIBYTE) < SLACK


def test_looking_loses_nothing_of_the_most_of_all(peak: PeakMemory):
    held = block(512)
    del held
    before = peak_memory_bytes(CPU)
    with peak.during("little"):
        pass
    assert peak_memory_bytes(CPU) >= before
    assert peak.taken["little"] < SLACK


def test_a_failure_closes_its_stretch(peak: PeakMemory):
    with pytest.raises(KeyError), peak.during("outer"), peak.during("fails"):
        raise KeyError
    assert peak._open == []


def test_a_fork_looks_at_itself(peak: PeakMemory):
    peak.look()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with peak.during("of the fork"):
            held = block(256)
            del held
        os.write(write, str(peak.taken["of the fork"]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert abs(int(os.read(read, 100)) - 256 * MEBIBYTE) < SLACK
    os.close(read)


def test_nothing_is_said_where_nobody_can_look(monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(PeakMemory, "switch", (0, -1))
    monkeypatch.setattr(os, "open", refused)
    peak = PeakMemory(CPU)
    with peak.during("part"):
        pass
    assert not peak.can_look
    assert peak.taken == {}
