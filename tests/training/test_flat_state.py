"""One vector for all parameters: every one where its number says, aligned, and looking as it did."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.training.flat_state import ALIGNMENT_BYTES, FlatState


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.float64])
)
def test_views_do_not_overlap_and_are_aligned(shapes: list[list[int]], dtype: torch.dtype) -> None:
    like = [torch.empty(shape, dtype=dtype) for shape in shapes]
    flat = FlatState(like, remembers=True)
    for i, place in enumerate(flat.places):
        place.fill_(i + 1)
    for i, (place, given_) in enumerate(zip(flat.places, like, strict=True)):
        assert (place.shape, place.stride(), place.dtype) == (given_.shape, given_.stride(), dtype)
        assert (place == i + 1).all()
        assert (place.data_ptr() - flat.parameters.data_ptr()) % ALIGNMENT_BYTES == 0 or not place.numel()
    assert flat.parameters.count_nonzero() == sum(tensor.numel() for tensor in like)
    assert not flat.gradients.any()
    assert flat.momenta.shape == flat.parameters.shape


def test_strides_are_kept() -> None:
    like = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    flat = FlatState([torch.zeros(3), like], remembers=False)
    assert flat.places[1].is_contiguous(memory_format=torch.channels_last)
    assert flat.gradient_places[1].is_contiguous(memory_format=torch.channels_last)
    assert flat.momenta.shape == (0,)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_runs_hold_the_parameters_that_are_asked_for_and_no_others(case: tuple[int, set[int]]) -> None:
    n, wanted = case
    flat = FlatState([torch.zeros(i % 3 + 1) for i in range(n)], remembers=False)
    runs = list(flat.runs(list(wanted)))
    for run in runs:
        (flat.parameters if run is None else flat.parameters[run]).add_(1)
    assert [bool(place.all()) for place in flat.places] == [i in wanted for i in range(n)]
    assert runs == [None] or len(wanted) < n
    assert all(b.start - a.stop > 0 for a, b in pairwise(runs) if a and b)  # neighbours are one run


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        ([torch.zeros(2), torch.zeros(2).double()], "several types"),
        ([torch.zeros(1).expand(3)], "share memory"),
        ([torch.zeros(8)[::2]], "do not lie side by side"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(like: list[Tensor], reason: str) -> None:
    with pytest.raises(NotRecordableError, match=reason):
        FlatState(like, remembers=True)
