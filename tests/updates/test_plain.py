"""Rules on what is no tensor of updates with weights: taken where that is clear, refused in one line where it is not."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from fl_lightning.aggregators import FedAvg, FLTrust, Invariant, Median
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]
MATRIX = torch.tensor(ROWS)


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        np.array(ROWS),
        np.array(ROWS, dtype=np.int16),
        np.array(ROWS)[::-1],
        [np.array(row) for row in ROWS],
        list(MATRIX),
        MATRIX.half(),
        MATRIX.long(),
        torch.nn.Parameter(MATRIX),
        MATRIX.T.contiguous().T,
    ],
    ids=lambda given: type(given).__name__,
)
def test_matrices_of_any_make_are_taken(given: Any) -> None:
    expected = FedAvg()(MATRIX)
    assert torch.equal(FedAvg()(given), expected)
    assert torch.equal(FedAvg()(given, np.array([1, 1, 1])), expected)
    assert Invariant()(given).dtype == torch.float32


def test_read_only_arrays_are_left_alone() -> None:
    array = np.array(ROWS, dtype=np.float32)
    array.flags.writeable = False
    assert Median()(array).tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        (
            torch.zeros(20, 3, 4),
            "updates must be a (N, d) tensor of numbers, one client's update a row, got the shape (20, 3, 4)",
        ),
        (torch.zeros(5), "got the shape (5,); of a single update make updates[None]"),
        (torch.tensor(1.0), "got the shape ()"),
        ([], "got the shape (0,)"),
        ([[1.0], [1.0, 2.0]], "got a list of list that is none"),
        ([torch.zeros(2), torch.zeros(3)], "got a list of Tensor that is none"),
        ([{"weight": 1.0}], "got a list of dict that is none"),
        ({"weight": MATRIX}, "got a dict that is none"),
        ([["a", "b"]], "got a list of list that is none"),
        (None, "got a NoneType that is none"),
        (MATRIX.to(torch.complex64), "got torch.complex64; make it a dense tensor of real numbers"),
        (MATRIX.to_sparse(), "got torch.sparse_coo; make it a dense tensor"),
    ],
)
def test_what_is_no_matrix_is_refused(updates: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        Median()(updates)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 2.0], "one for each row of the updates, so 3 here, got the shape (2,)"),
        (torch.ones(4), "so 3 here, got the shape (4,)"),
        (torch.ones(3, 1), "so 3 here, got the shape (3, 1)"),
        (2.0, "so 3 here, got the shape ()"),
        ([1.0, torch.nan, 1.0], "weights[1] is nan"),
        ([1.0, 1.0, -2.0], "weights[2] is -2.0"),
        ([torch.inf, 1.0, 1.0], "weights[0] is inf"),
        ([1e300, 1.0, 1.0], "weights[0] is inf"),
        ([0, 0, 0], "all 3 are 0, so that no update would count"),
        (["a", "b", "c"], "got a list of str that is none"),
    ],
)
@pytest.mark.parametrize("make", [FedAvg, Median])
def test_weights_that_weigh_nothing_are_refused(make: Any, weights: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        make()(MATRIX, weights)


def test_a_row_of_weight_0_does_not_count() -> None:
    assert FedAvg()(MATRIX, [0, 1, 1]).tolist() == [4.0, 6.5]
    broken = torch.tensor([[1.0, 2.0], [torch.nan, 4.0]])
    assert FedAvg()(broken, [0, 1]).tolist() == [0.0, 0.0]


def test_rows_that_are_left_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert FedAvg()([[1.0], [torch.inf], [3.0]]).tolist() == [2.0]
    assert "FedAvg: rows [1] are not finite, and left out" in caplog.text


def test_root_and_malicious() -> None:
    with pytest.raises(ConfigurationError, match=r"shape of an update, \(2,\), got \(3,\)"):
        FLTrust()(MATRIX, root=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigurationError, match="Median has no use for root"):
        Median()(MATRIX, root=[1.0, 2.0])
    assert FLTrust()(MATRIX, root=np.array([1.0, 2.0])).isfinite().all()
    with pytest.raises(ConfigurationError, match=r"malicious must be N truth values.* got torch.int64"):
        UpdateShard.from_updates(MATRIX, malicious=torch.tensor([0, 1, 0]))
    with pytest.raises(ConfigurationError, match=r"so 3 here, got the shape \(1,\)"):
        UpdateShard.from_updates(MATRIX, malicious=torch.tensor([True]))


def test_what_a_shard_brings_is_not_given_twice() -> None:
    shard = UpdateShard.from_updates(MATRIX)
    with pytest.raises(ConfigurationError, match="a shard brings weights and root of its own"):
        FedAvg()(shard, torch.ones(3))
