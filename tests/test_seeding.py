import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning import seeding
from fl_lightning.seeding import bookmark, derive_seed, drawn_by_chance, generator, global_draws


def draw(*key) -> list[float]:
    return torch.rand(4, generator=generator(*key)).tolist()


def test_same_key_gives_the_same_stream():
    assert draw(3, "cohort", 7) == draw(3, "cohort", 7)


def test_every_part_of_the_key_counts():
    keys = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 1),
        (0, "a", 1, 0),
        (0, "a", 10),
        (0, "a", 1, 0, 0),
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(0, "x")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("draw_one", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_draws_from_a_global_generator_are_seen(draw_one):
    before = global_draws()
    draw(0, "x")
    assert global_draws() == before
    draw_one()
    assert global_draws() != before


@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=10), st.lists(st.integers(0, 2**31), max_size=3))
def test_seed_fits_into_32_bits(seed, purpose, keys):
    assert 0 <= derive_seed(seed, purpose, *keys) < 2**32


def test_streams_do_not_change_between_versions():
    """A record of an old run must stay reproducible."""
    assert derive_seed(0, "cohort", 0) == 2815604161


@pytest.mark.parametrize(
    ("source", "draw_from"),
    [
        (torch.Generator(), lambda source: torch.rand(1, generator=source).item()),
        (random.Random(), random.Random.random),
        (np.random.default_rng(), np.random.Generator.random),
        (np.random.Generator(np.random.MT19937()), np.random.Generator.random),
        (np.random.RandomState(), np.random.RandomState.rand),
    ],
)
def test_a_generator_goes_on_from_where_it_was(source, draw_from):
    go_back = bookmark(source)
    first, second = draw_from(source), draw_from(source)
    for _ in range(2):
        go_back()
        assert (draw_from(source), draw_from(source)) == (first, second)


def test_a_seed_of_the_systems_is_told_from_a_persons():
    torch.seed()
    assert drawn_by_chance()
    torch.manual_seed(2**32 - 1)
    assert not drawn_by_chance()


def test_the_example_names_keys_that_are_drawn_by():
    package = Path(seeding.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "seeding.py")
    purposes = re.findall(r'\(seed, "([^"]+)"', seeding.__doc__ or "")
    assert len(purposes) == 2
    for purpose in purposes:
        assert re.search(rf'(generator|derive_seed)\((self\.)?seed, "{purpose}"', text), purpose
