import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_many import HOSTILE, made_updates
from torch import Tensor

from fl_lightning.aggregators.bulyan import _mean_around_median, _mean_around_median_of_many
from fl_lightning.aggregators.bulyan_selection import select_one_by_one
from fl_lightning.aggregators.distances import squared_distances
from fl_lightning.updates import UpdateShard


def oracle(distances: Tensor, f: int, count: int) -> list[int]:
    """Every score added up anew, in float64, one distance after the other in ascending order."""
    left, chosen = list(range(len(distances))), []
    for _ in range(count):
        near = max(1, len(left) - f - 2)
        scores = []
        for i in left:
            total = 0.0
            for distance in sorted(float(distances[i, j]) for j in left if j != i)[:near]:
                total += distance
            scores.append(total)
        chosen.append(left.pop(scores.index(min(scores))))
    return sorted(chosen)


cases = st.tuples(st.sampled_from(HOSTILE), st.integers(1, 24), st.sampled_from([1, 2, 60]), st.integers(0, 99))


@settings(deadline=None, max_examples=120)
@given(case=cases, data=st.data())
def test_scores_kept_up_to_date_choose_as_scores_added_up_anew(case: tuple[str, int, int, int], data: st.DataObject) -> None:
    distances = squared_distances(UpdateShard.from_updates(made_updates(*case)).gram())
    f, count = data.draw(st.integers(0, len(distances))), data.draw(st.integers(1, len(distances)))
    assert select_one_by_one(distances, f, count).tolist() == oracle(distances, f, count)


def test_scores_that_fall_by_many_orders_of_magnitude() -> None:
    # Whoever counts a far one has a large score, of which nothing is left to the last digit once that is not counted any more.
    points = torch.tensor([0.0, 1.0, 2.5, 4.1, 1e12, 1e12 + 7e5, -1e12, 3e12, 8.0, 9.5])
    distances = (points.double()[:, None] - points.double()).square()
    for f in range(4):
        for count in range(1, 11):
            assert select_one_by_one(distances, f, count).tolist() == oracle(distances, f, count)


def test_many_that_tie_are_taken_in_their_order() -> None:
    assert select_one_by_one(torch.zeros(30, 30, dtype=torch.float64), 3, 11).tolist() == list(range(11))


def test_sixty_clients() -> None:
    distances = squared_distances(UpdateShard.from_updates(made_updates("random", 60, 300, 0)).gram())
    assert select_one_by_one(distances, 13, 34).tolist() == oracle(distances, 13, 34)


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "huge"])  # sums that float32 does not hold: see `mend`
def test_the_window_of_many_has_the_bits_of_few(kind: str) -> None:
    for n in (1, 2, 3, 8, 31):
        values = made_updates(kind, n, 50, n).clamp(-1e37, 1e37)
        values[:, ::7] = -0.0
        for count in {1, n // 2 or 1, n - 1 or 1, n}:
            few, many = _mean_around_median(values, count), _mean_around_median_of_many(values, count)
            assert few.numpy().tobytes() == many.numpy().tobytes()
