"""The sorting network: exact for every number of rows and every trim, and blind to the order of rows."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_lightning.updates.order_statistics import NETWORK_ROWS, CompareExchange, median, network, order_statistics, trimmed_mean

SMALLEST = 2.0**-149  # the least positive float32
SPECIAL = [0.0, -0.0, SMALLEST, -SMALLEST, 1e-40, -1e-40, 1.0, -1.0, 1e30, -1e30, 3.4e38, -3.4e38]


def zeros_and_ones(n: int, gen: random.Random) -> list[int]:
    """n rows of bits, one column of 0s and 1s per bit: all 2^n of them for small n, else 256 random ones.

    A network that sorts these sorts everything (the zero-one principle); minimum is `&` and maximum is `|`.
    """
    if n <= 10:
        columns = range(2**n)
    else:
        counts = [gen.randrange(n + 1) for _ in range(256)]
        columns = [sum(1 << row for row in gen.sample(range(n), ones)) for ones in counts]
    return [sum((column >> row & 1) << at for at, column in enumerate(columns)) for row in range(n)]


def sorted_bits(rows: list[int]) -> list[int]:
    """Every column in order, by counting: row r of the result is 1 where at least n - r entries are."""
    at_least = [-1] + [0] * len(rows)  # [c]: columns with c ones or more so far; -1 is all bits
    for row in rows:
        for c in range(len(rows), 0, -1):
            at_least[c] |= at_least[c - 1] & row
    return at_least[:0:-1]


def run(exchanges: tuple[CompareExchange, ...], rows: list[int]) -> list[int]:
    """The network's rows afterwards; one that nothing is said to read becomes garbage."""
    rows = list(rows)
    for number, (low, high, minimum, maximum) in enumerate(exchanges):
        a, b = rows[low], rows[high]
        garbage = 0x5A5A5A5A >> number % 7
        rows[low] = a & b if minimum else garbage
        rows[high] = a | b if maximum else garbage
    return rows


def test_network_is_right_for_every_number_of_rows_and_every_trim() -> None:
    """Beyond `NETWORK_ROWS` rows, which networks sort on a GPU alone, for every ninth number: most of the time is theirs."""
    gen = random.Random(0)
    for n in [*range(1, NETWORK_ROWS + 1), *range(NETWORK_ROWS + 1, 129, 9)]:
        rows = zeros_and_ones(n, gen)
        expected = sorted_bits(rows)
        for trim in range((n + 1) // 2):
            got = run(network.__wrapped__(n, trim, n - trim), rows)
            assert got[trim : n - trim] == expected[trim : n - trim], f"{n} rows, trim {trim}"


@pytest.mark.parametrize(("n", "first", "last"), [(8, 0, 8), (10, 0, 10), (7, 2, 5), (9, 0, 1)])
def test_network_without_any_one_of_its_exchanges_is_wrong(n: int, first: int, last: int) -> None:
    rows = zeros_and_ones(n, random.Random(0))
    expected = sorted_bits(rows)[first:last]
    exchanges = network(n, first, last)
    assert run(exchanges, rows)[first:last] == expected
    for i in range(len(exchanges)):
        assert run(exchanges[:i] + exchanges[i + 1 :], rows)[first:last] != expected


def test_order_statistics_equal_sort_for_every_number_of_rows() -> None:
    gen = torch.Generator().manual_seed(0)
    special = torch.tensor(SPECIAL)
    for n in range(1, 129):
        values = torch.randn(n, 12, generator=gen)
        values[:, 4:8] = torch.randint(-2, 3, (n, 4), generator=gen).float()  # ties
        values[:, 8:] = special[torch.randint(len(special), (n, 4), generator=gen)]
        expected = values.sort(dim=0).values
        for trim in {0, -(-n // 4), (n - 1) // 2}:
            if 2 * trim < n:
                got = torch.stack(order_statistics(values, trim, n - trim))
                assert torch.equal(got, expected[trim : n - trim]), f"{n} rows, trim {trim}"


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_any_range_of_ranks(n: int) -> None:
    values = torch.randn(n, 9, generator=torch.Generator().manual_seed(n))
    before, expected = values.clone(), values.sort(dim=0).values
    for first in range(n):
        for last in range(first + 1, n + 1):
            got = torch.stack(order_statistics(values, first, last))
            assert torch.equal(got, expected[first:last])
    assert torch.equal(values, before)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (2, 1), (-1, 2), (0, 4)])
def test_ranks_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(AssertionError, match=f"ranks {first}..{last} of 3 rows"):
        order_statistics(torch.zeros(3, 1), first, last)


@pytest.mark.parametrize(
    ("n", "trim", "exchanges"),
    [(1, 0, 0), (2, 0, 1), (4, 0, 5), (8, 0, 19), (16, 0, 63), (20, 0, 97), (20, 5, 91)],
)
def test_number_of_exchanges(n: int, trim: int, exchanges: int) -> None:
    assert len(network(n, trim, n - trim)) == exchanges


def test_minima_and_maxima_that_nothing_reads_are_left_out() -> None:
    exchanges = network(20, 5, 15)
    read = set(range(5, 15))
    for low, high, minimum, maximum in reversed(exchanges):
        assert (minimum, maximum) == (low in read, high in read)
        read |= {low, high}
    assert sum(e.minimum + e.maximum for e in exchanges) < 2 * len(exchanges)


# ---- trimmed mean and median -----------------------------------------------------------------------------------------


def bits(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def ascending_sum(column: list[float], trim: int) -> Tensor:
    total = torch.tensor(0.0)
    for value in sorted(column)[trim : len(column) - trim]:
        total = total + torch.tensor(value)
    return total / (len(column) - 2 * trim)


@pytest.mark.parametrize(
    ("column", "trim", "expected"),
    [
        ([7.0], 0, 7.0),
        ([1.0, 4.0], 0, 2.5),
        ([0.0, 1.0, 5.0, 100.0], 1, 3.0),
        ([-1e30, 1.0, 2.0, 6.0, 1e30], 1, 3.0),
        ([2.0, 2.0, 2.0, 9.0, 9.0], 1, 13 / 3),  # ties are removed by place, not by value
        ([SMALLEST, 3 * SMALLEST, 5 * SMALLEST], 0, 3 * SMALLEST),
        ([-0.0, -0.0, -0.0], 0, 0.0),
    ],
)
def test_trimmed_mean_by_hand(column: list[float], trim: int, expected: float) -> None:
    assert torch.equal(trimmed_mean(torch.tensor(column)[:, None], trim), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([3.0], 3.0),
        ([3.0, 5.0], 4.0),
        ([1e30, -1.0, 3.0], 3.0),
        ([1000.0, 1.0, 3.0, 2.0], 2.5),
        ([-1e30, -1e30, 1.0, 1e30, 1e30], 1.0),
        ([SMALLEST, -SMALLEST, 0.0], 0.0),
    ],
)
def test_median_by_hand(column: list[float], expected: float) -> None:
    assert torch.equal(median(torch.tensor(column)[:, None]), torch.tensor([expected]))


columns = st.lists(
    st.sampled_from(SPECIAL[:-2]) | st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=1, max_size=24
)


@settings(deadline=None, max_examples=80)
@given(column=columns, data=st.data())
def test_order_of_rows_does_not_matter_to_a_bit(column: list[float], data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (len(column) - 1) // 2))
    shuffled = data.draw(st.permutations(column))
    values, other = torch.tensor(column)[:, None], torch.tensor(shuffled)[:, None]
    assert bits(trimmed_mean(values, trim)) == bits(trimmed_mean(other, trim))
    assert bits(median(values)) == bits(median(other))
    assert bits(trimmed_mean(values, trim)) == bits(ascending_sum(column, trim)[None])


def test_zeros_of_either_sign_give_the_same_bits_in_any_order() -> None:
    for signs in ([0.0, -0.0, -0.0], [-0.0, 0.0, -0.0], [-0.0, -0.0, 0.0], [-0.0, -0.0, -0.0]):
        column = torch.tensor(signs)[:, None]
        for trim in (0, 1):
            assert bits(trimmed_mean(column, trim)) == bits(torch.tensor([0.0]))


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 31, 64, 100])
def test_a_column_has_the_same_bits_at_any_width(width: int) -> None:
    values = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)) * 1e3
    whole = trimmed_mean(values, 5)
    parts = torch.cat([trimmed_mean(part, 5) for part in values.split(width, dim=1)])
    assert bits(parts) == bits(whole)
    assert bits(torch.cat([median(part) for part in values.split(width, dim=1)])) == bits(median(values))
