import time
from collections import defaultdict

import pytest
import torch

from fl_lightning.server.phases import Phases


def test_a_second_counts_once_for_the_inner_phase() -> None:
    watch, seconds, device = Phases(), defaultdict(float), torch.device("cpu")
    began = time.perf_counter()
    with watch.phase("outer", seconds, device):
        time.sleep(0.01)
        with watch.phase("inner", seconds, device):
            time.sleep(0.02)
            with watch.phase("innermost", seconds, device):
                time.sleep(0.03)
        with watch.phase("inner", seconds, device):
            time.sleep(0.02)
    elapsed = time.perf_counter() - began
    assert sum(seconds.values()) == pytest.approx(elapsed, rel=0.05)
    assert seconds["outer"] >= 0.01
    assert seconds["inner"] >= 0.04
    assert seconds["innermost"] >= 0.03
    with watch.phase("outer", seconds, device):
        pass
    assert sum(seconds.values()) == pytest.approx(elapsed, rel=0.05)
