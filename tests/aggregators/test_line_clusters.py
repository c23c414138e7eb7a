import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators.clustering import by_gap_statistic
from fl_lightning.aggregators.line_clusters import least_dispersions, number_on_a_line, upper_of_two


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def best_of_all_cuts(numbers: list[float], k: int) -> tuple[float, list[np.ndarray]]:
    ordered = np.sort(np.array(numbers))
    return min(
        (
            (sum(float(((part - part.mean()) ** 2).sum()) for part in parts), parts)
            for cuts in combinations(range(1, len(numbers)), k - 1)
            for parts in [np.split(ordered, cuts)]
        ),
        key=lambda found: found[0],
    )


SCORES = torch.tensor([0.1, 0.1, 0.12, 0.11, 0.9, 0.95], dtype=torch.float64)


def test_by_hand() -> None:
    scaled = (SCORES - 0.1) / 0.85
    assert scaled.tolist() == pytest.approx([0, 0, 0.023529, 0.011765, 0.941176, 1], abs=1e-6)
    assert least_dispersions(scaled, 2).tolist() == pytest.approx([1.235433, 0.002111], abs=1e-6)
    assert upper_of_two(scaled).tolist() == [False] * 4 + [True] * 2
    assert number_on_a_line(scaled, 7, 10, drawn(0)) > 1
    references = torch.rand(20_000, 6, generator=drawn(0), dtype=torch.float64)
    of_one = torch.stack([least_dispersions(row, 1)[0] for row in references[:2000]])
    assert float(of_one.mean()) == pytest.approx(5 / 12, abs=4 * float(of_one.std()) / math.sqrt(2000))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.integers(1, 9))
def test_are_the_best_of_all_cuts(numbers: list[int], most: int) -> None:
    found = least_dispersions(torch.tensor(numbers, dtype=torch.float64) / 30, most)
    expected = [best_of_all_cuts([number / 30 for number in numbers], k)[0] for k in range(1, min(most, len(numbers)) + 1)]
    assert found.tolist() == pytest.approx(expected, abs=1e-14)
    if len(set(numbers)) > 1:
        upper = upper_of_two(torch.tensor(numbers, dtype=torch.float64) / 30)
        groups = [np.array(numbers)[upper.numpy() == side] / 30 for side in (False, True)]
        assert sum(float(((part - part.mean()) ** 2).sum()) for part in groups) == pytest.approx(
            float(found[1]) if most > 1 else best_of_all_cuts([number / 30 for number in numbers], 2)[0], abs=1e-14
        )
        assert groups[0].max() < groups[1].min()


def test_the_gap_statistic_is_its_definition() -> None:
    """With squares, the logarithm of the mean, and k, not k + 1."""
    found = []
    for seed in range(12):
        centres = torch.tensor([0.0, 6.0, 30.0], dtype=torch.float64)[torch.arange(8) * (1 + seed % 3) // 8]
        numbers = centres + 0.4 * torch.randn(8, generator=drawn(seed), dtype=torch.float64)
        numbers = (numbers - numbers.min()) / (numbers.max() - numbers.min())
        references = torch.rand(5, 8, generator=drawn(seed), dtype=torch.float64).tolist()
        gaps, errors = [], []
        for k in range(1, 6):
            dispersions = [best_of_all_cuts(row, k)[0] for row in references]
            gaps.append(math.log(sum(dispersions) / 5) - math.log(best_of_all_cuts(numbers.tolist(), k)[0]))
            errors.append(math.sqrt(1 + 1 / 5) * float(np.std(np.log(dispersions))))
        expected = next((k for k in range(1, 5) if gaps[k - 1] >= gaps[k] - errors[k]), 5)
        assert number_on_a_line(numbers, 5, 5, drawn(seed)) == expected
        found.append(expected)
    assert {1, 2, 3} <= set(found)


def test_two_means_differ() -> None:
    dispersions = [torch.tensor([4.0, 1.0, 9.0]).double(), torch.tensor([2.0, 0.4, 4.6]).double()]
    # Means of logs: log 3 - log 4 and log(sqrt(1.84) / 2), so k = 1; logs of means: log(5 / 4) and log(2.5 / 2).
    deviation = math.sqrt(1.5) * float(np.std(np.log([0.4, 4.6])))
    assert math.log(5 / 4) >= math.log(2.5 / 2) - deviation
    assert by_gap_statistic(dispersions, log_of_mean=True) == by_gap_statistic(dispersions) == 1
    steeper = [torch.tensor([4.0, 1.0, 1.0]).double(), torch.tensor([2.0, 0.9, 0.9]).double()]
    assert by_gap_statistic(steeper) == by_gap_statistic(steeper, log_of_mean=True) == 2  # none fits, so the last


def test_of_two_numbers_neither_is_apart() -> None:
    assert {number_on_a_line(torch.tensor([0.0, 1.0]).double(), 7, 10, drawn(seed)) for seed in range(20)} == {1}
