"""The sum is the one that can be worked out by hand, and the memory that is free is found where Linux says it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.footprint import (
    Footprint,
    available_bytes,
    check_fits,
    owned,
    readable,
    state_copies,
    tensor_bytes,
)
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.exchange import Exchange

D = 256 * 1024  # 256 blocks of 1024
SMALL = Footprint(num_clients=20, num_coordinates=D, model_bytes=4 * D, world=2, bucket_bytes=4 * 20 * 4096)


def in_vectors(footprint: Footprint) -> tuple[float, dict[str, float]]:
    """What is held throughout and what each phase takes, in vectors of d numbers."""
    throughout = sum(term.bytes for term in footprint.throughout) / (4 * D)
    return throughout, {phase: sum(t.bytes for t in terms) / (4 * D) for phase, terms in footprint.phases.items()}


def test_the_sum_by_hand():
    throughout, phases = in_vectors(SMALL)
    assert throughout == 1 + 1  # the model, its weights as a vector
    assert phases == {
        "training": 10 + 2 + 1 + 1,  # ten clients of twenty, what updates are differences of, the snapshot, gradients
        "exchange": 10 + 2 * 20 * 4096 / D,  # ten clients, two buckets
        "aggregation": 10 + 0.5 + 1.5,  # half of twenty, half an aggregate, the padded half and the whole
    }
    assert SMALL.total == 4 * D * 16


def test_one_rank_sends_nothing():
    throughout, phases = in_vectors(replace(SMALL, world=1))
    assert throughout == 2
    assert phases == {"training": 24, "exchange": 20, "aggregation": 21}


def test_what_an_attack_a_rule_and_optimizers_keep():
    larger = replace(
        SMALL, watched=True, rule_vectors=2, optimizer_copies=2, server_copies=1, data_bytes=4 * D, num_buffers=D, sum_size=D
    )
    throughout, phases = in_vectors(larger)
    assert throughout == 2 + 1 + 2 / 2 + 1 + 1  # and the watched step, the rule's, the server's, data
    assert phases["training"] == 14 + 10 + 2  # and buffers, the optimizer
    sums = 16 * (2 + 2) * 2  # 16 sums of d float64 on this rank twice, and gathered from two
    assert phases["aggregation"] == 12 + 10 + 2 + 1 + sums + 20 * 1024 * 4 / D  # the server's optimizer as it was


def test_models_are_examined_one_at_a_time():
    plainly, phases = in_vectors(SMALL)[1], in_vectors(replace(SMALL, examined=True))[1]
    assert phases == {**plainly, "examination": 10 + 2 + 3}  # half of twenty, the module's values twice, a model on its way


def test_gloo_gathers_into_a_copy_of_its_own():
    plainly, with_copies = (in_vectors(replace(SMALL, sum_size=D, gather_copies=copies))[1]["aggregation"] for copies in (0, 1))
    assert with_copies - plainly == 1 + 2 * 2 * 16  # an aggregate, and two ranks' 16 sums of d float64


def test_a_rank_may_train_more_clients_than_its_share():
    assert replace(SMALL, local_clients=15).total - SMALL.total == 4 * D * 5
    assert replace(SMALL, local_clients=3).total == SMALL.total


def test_clients_trained_together_have_weights_and_optimizers_of_their_own():
    alone, together = (in_vectors(replace(SMALL, optimizer_copies=2, branches=branches))[0] for branches in (1, 3))
    assert together - alone == 3 * (1 + 2)
    alone, together = (
        in_vectors(replace(SMALL, optimizer_copies=2, recorded=True, branches=branches))[0] for branches in (1, 3)
    )
    assert together - alone == (3 + 2) * (1 + 1 + 2)


def test_recorded_steps_have_weights_gradients_and_momenta_that_last():
    (throughout, phases), (of_recorded, phases_of_recorded) = (
        in_vectors(replace(SMALL, optimizer_copies=1, recorded=recorded)) for recorded in (False, True)
    )
    assert of_recorded - throughout == 3
    assert phases["training"] - phases_of_recorded["training"] == 2
    assert phases["aggregation"] == phases_of_recorded["aggregation"]


def test_the_arithmetic_adds_up_and_says_where_it_comes_from():
    text = replace(SMALL, data_bytes=3 * 2**20).arithmetic()
    assert "N = 20, d = 262,144, W = 2" in text
    assert "K_r * (W * S): 4 * 10 * 262,144" in text
    lines = {line[:26].strip(): line.split()[-2:] for line in text.splitlines()}
    assert lines["trained updates"] == ["10.0", "MiB"]
    assert lines["data"] == ["3.0", "MiB"]
    assert lines["total: throughout + traini"] == ["19.0", "MiB"]
    assert "client's optimizer" not in lines  # nothing there
    assert len({len(line) for line in text.splitlines()[1:]}) == 1  # one column
    assert readable(3 * 2**29) == "1.50 GiB"


# ---- how it grows ----------------------------------------------------------------------------------------------------

counts = st.integers(1, 2000)
sizes = st.integers(1, 2**31)
ranks = st.integers(1, 256)


def plain(n: int, d: int, world: int) -> Footprint:
    return Footprint(num_clients=n, num_coordinates=d, model_bytes=4 * d, world=world, optimizer_copies=1, sum_size=n * n)


def rounding(footprint: Footprint) -> int:
    """Bytes by which whole blocks and whole clients may exceed an even share."""
    per_rank = footprint.num_clients // footprint.world + 1
    columns = footprint.world * block_size(footprint.num_coordinates)
    return 4 * columns * (2 * per_rank + 8) + 8 * footprint.sum_size * 3 * footprint.world


@given(counts, counts, sizes, ranks)
def test_more_clients_take_more(n: int, more: int, d: int, world: int) -> None:
    assert plain(n + more, d, world).total >= plain(n, d, world).total


@given(counts, sizes, sizes, ranks)
def test_a_larger_model_takes_more(n: int, d: int, more: int, world: int) -> None:
    smaller, larger = plain(n, d, world), plain(n, d + more, world)
    assert larger.total + rounding(smaller) >= smaller.total


@given(st.integers(1, 30), st.integers(1, 4000), st.integers(1, 7))
def test_more_ranks_take_less_each(n: int, blocks: int, power: int) -> None:
    """Numbers that divide evenly: there the memory can only fall, but for what exists between ranks alone."""
    d, world = 256 * 1024 * blocks, 2**power
    few, many = (replace(plain(n * 256, d, w), sum_size=0) for w in (world, 2 * world))
    assert many.total <= few.total


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_own_and_send_what_the_exchange_says(world: int) -> None:
    for of_sizes in on_ranks(world, sides):
        for (columns, arriving), (of_exchange, buckets) in of_sizes:
            assert columns == of_exchange
            assert arriving >= buckets


def sides() -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found = []
    for d in (1, 5000, 300_001):
        exchange = Exchange([d], torch.device("cpu"), bucket_bytes=4 * 10 * 1024)
        footprint = Footprint(
            num_clients=5, num_coordinates=d, model_bytes=0, world=exchange.world, bucket_bytes=exchange.bucket_bytes
        )
        terms = {term.name: term.bytes for term in footprint.phases["exchange"]}
        columns = max(exchange.bucket_columns(5)) if exchange.distributed else 0
        mine = owned(d, exchange.world), terms.get("arriving buckets", 0)
        found.append((mine, (exchange.padded, 2 * 4 * 5 * columns)))
    return found


# ---- what goes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "copies"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: torch.optim.SGD([{"params": p, "momentum": 0.9}], lr=0.1), 1),
        (lambda p: torch.optim.RMSprop(p), 1),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True), 3),
        (lambda p: torch.optim.Adagrad(p), 1),
        (lambda p: torch.optim.Adam(p), 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (lambda p: torch.optim.Adadelta(p), 2),
        (lambda p: torch.optim.NAdam(p), 2),
        (lambda p: torch.optim.Rprop(p), 2),
    ],
)
def test_copies_are_what_an_optimizer_keeps(make, copies):
    weight = nn.Parameter(torch.ones(100))
    optimizer = make([weight])
    assert state_copies(optimizer) == copies
    weight.sum().backward()
    optimizer.step()
    kept = sum(value.numel() for value in optimizer.state[weight].values() if torch.is_tensor(value) and value.numel() > 1)
    assert kept == copies * 100


def test_an_optimizer_that_is_not_known_counts_for_two():
    class Mine(torch.optim.Optimizer):
        pass

    assert state_copies(Mine([nn.Parameter(torch.ones(1))], {})) == 2


def test_shared_tensors_count_once():
    layer = nn.Linear(10, 10)
    tied = nn.Sequential(layer, layer, nn.BatchNorm1d(10))
    everything = [[*tied.parameters(), *tied.buffers()], layer]
    assert tensor_bytes(everything[:1]) == 4 * (100 + 10 + 4 * 10) + 8  # and BatchNorm's counter

    class Pair:
        def __init__(self, inputs: torch.Tensor) -> None:
            self.inputs, self.name = inputs, "a"

    images = torch.zeros(6, 2, dtype=torch.uint8)
    assert tensor_bytes([Pair(images), Pair(images), Pair(torch.zeros(3)), None]) == 12 + 12


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_a_round_that_does_not_fit_is_refused():
    check_fits(SMALL, None)
    check_fits(SMALL, SMALL.total)
    check_fits(SMALL, SMALL.total - SMALL.model_bytes, held=SMALL.model_bytes)
    with pytest.raises(ConfigurationError) as refused:
        check_fits(SMALL, SMALL.total - 2**20, held=2**19)
    message = str(refused.value)
    assert "takes at least 16.0 MiB on a rank, 15.5 MiB of it still to be found, but 15.0 MiB are free" in message
    for remedy in ("clients_per_round = 20", "more ranks than 2", "model.bucket_bytes than 327680", "smaller model"):
        assert remedy in message
    assert message.endswith(SMALL.arithmetic())
    assert "side by side" not in message
    with pytest.raises(ConfigurationError, match=r"fewer clients side by side than 3 \(model\.local\.branches"):
        check_fits(replace(SMALL, branches=3), 0)


def tell(root: Path, files: dict[str, str]) -> Path:
    """A root of a file system with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       2000 kB\nMemAvailable:       1000 kB\n"}
VERSION_2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": "500000\n",
    "sys/fs/cgroup/job/memory.current": "300000\n",
    "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 40000\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": "200000\n",
}
VERSION_1 = {
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "700000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 50000\n",
}
UNLIMITED = {**VERSION_1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 1_024_000),
        ({**MEMINFO, **VERSION_2}, 240_000),  # of the group around the process's own
        ({**MEMINFO, **VERSION_1}, 650_000),  # of the container's, whose path is the host's
        ({**MEMINFO, **UNLIMITED}, 1_024_000),
        (VERSION_1, 650_000),
    ],
)
def test_the_smallest_of_what_the_system_tells(tmp_path, files, expected):
    root = tell(tmp_path, files)
    assert available_bytes(torch.device("cpu"), 1, root) == expected
    if expected is not None:
        assert available_bytes(torch.device("cpu"), 4, root) == expected // 4


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    files = {**VERSION_2, "sys/fs/cgroup/job/memory.current": "600000\n"}
    assert available_bytes(torch.device("cpu"), 1, tell(tmp_path, files)) == 0


def test_other_devices_are_not_known():
    assert available_bytes(torch.device("meta"), 1) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_tells_itself():
    device = torch.device("cuda", 0)
    free, total = available_bytes(device, 1), torch.cuda.get_device_properties(0).total_memory
    assert free is not None
    assert 0 < free <= total
