"""Label flipping: which labels become which, for whom, and what ASR is measured on."""

from collections import Counter
from typing import Any

import pytest
import torch
from effect import on_digits
from tiny import tiny_data, tiny_federation
from worlds import Made, same_on_any_number_of_ranks

from fl_lightning.attacks import Attacker, LabelFlip
from fl_lightning.data import MapSamples, TensorSamples
from fl_lightning.data.outcomes import Tokens
from fl_lightning.errors import ConfigurationError

NEW_LABELS: dict[str, tuple[dict[str, Any], int, dict[int, int]]] = {
    "pair": ({"source_label": 1, "target_label": 3}, 5, {0: 0, 1: 3, 2: 2, 3: 3, 4: 4}),
    "all to one": ({"mode": "all_to_one", "target_label": 3}, 5, {0: 3, 1: 3, 2: 3, 3: 3, 4: 3}),
    "shift": ({"mode": "shift"}, 5, {0: 1, 1: 2, 2: 3, 3: 4, 4: 0}),
    "shift of six": ({"mode": "shift"}, 6, {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}),
    "reverse": ({"mode": "reverse"}, 5, {0: 4, 1: 3, 2: 2, 3: 1, 4: 0}),
    "reverse of six": ({"mode": "reverse"}, 6, {0: 5, 1: 4, 2: 3, 3: 2, 4: 1}),
}
"""Settings, number of classes, and the label that each class gets, written out."""


def data(n: int = 50) -> TensorSamples:
    return TensorSamples(torch.arange(n, dtype=torch.float32).view(n, 1), torch.arange(n) % 5, prepare=torch.neg)


def attacker(client: int = 0, seed: int = 0) -> Attacker:
    return Attacker(client=client, seed=seed, pool=data())


def flip(num_classes: int = 5, **settings: Any) -> LabelFlip:
    attack = LabelFlip(**settings)
    attack.validate(num_classes)
    return attack


@pytest.mark.parametrize("case", NEW_LABELS)
def test_labels_become_what_the_mode_says(case):
    settings, num_classes, new = NEW_LABELS[case]
    poisoned = flip(num_classes, **settings).poison(data(), attacker())
    assert isinstance(poisoned, TensorSamples)
    assert poisoned.targets.tolist() == [new[i % 5] for i in range(50)]
    assert torch.equal(poisoned.inputs, data().inputs)
    assert poisoned.prepare is torch.neg


@pytest.mark.parametrize("case", NEW_LABELS)
@pytest.mark.parametrize("fraction", [0.5, 0.21, 0.001])
def test_a_share_of_what_applies_is_relabelled(case, fraction):
    settings, num_classes, new = NEW_LABELS[case]
    targets = flip(num_classes, **settings, poison_fraction=fraction).poison(data(), attacker()).targets.tolist()
    flipped = Counter(i % 5 for i, label in enumerate(targets) if label != i % 5)
    assert all(targets[i] in (i % 5, new[i % 5]) for i in range(50))
    applies = 10 * sum(old != label for old, label in new.items())
    assert sum(flipped.values()) == max(1, round(fraction * applies))


def test_choice_depends_on_seed_and_client_alone():
    attack, many = flip(mode="shift", poison_fraction=0.2), data(400)
    first = attack.poison(many, attacker(client=3, seed=5)).targets
    torch.manual_seed(1)
    assert torch.equal(first, flip(mode="shift", poison_fraction=0.2).poison(many, attacker(client=3, seed=5)).targets)
    assert not torch.equal(first, attack.poison(many, attacker(client=4, seed=5)).targets)
    assert not torch.equal(first, attack.poison(many, attacker(client=3, seed=6)).targets)
    assert torch.equal(many.targets, data(400).targets)


def test_a_client_without_the_source_class_stays_clean():
    own = data().relabel(torch.zeros(50))
    assert torch.equal(flip(source_label=1, target_label=3).poison(own, attacker()).targets, own.targets)


def test_stamp_of_a_pair_is_the_clean_source_class_under_the_target_label():
    stamped = flip(source_label=1, target_label=3, poison_fraction=0.1).stamp(data())
    assert isinstance(stamped, TensorSamples)
    assert stamped.inputs.flatten().tolist() == list(range(1, 50, 5))
    assert stamped.targets.tolist() == [3] * 10
    assert flip(source_label=1, target_label=3).stamp(data().relabel(torch.zeros(50))) is None


@pytest.mark.parametrize("settings", [{"mode": "shift"}, {"mode": "reverse"}, {"mode": "all_to_one", "target_label": 2}])
def test_other_modes_have_no_success_rate(settings):
    assert flip(**settings).stamp(data()) is None
    assert flip(**settings).source_label is None


@pytest.mark.parametrize("mode", ["shift", "reverse"])
@pytest.mark.parametrize("padding", [0, 2, 4, -100, 7])
def test_no_class_becomes_padding(mode, padding):
    """A position whose label became padding would be one less to learn from: nothing of the attack."""
    classes = [y for y in range(5) if y != padding]
    moved = [*classes[1:], classes[0]] if mode == "shift" else classes[::-1]
    targets = torch.tensor([[padding, *classes], [*classes, padding]])
    outcome = Tokens(padding=padding)
    poisoned = flip(mode=mode).poison(TensorSamples(torch.zeros(2, len(classes) + 1), targets, outcome=outcome), attacker())
    assert poisoned.targets.tolist() == [[padding, *moved], [*moved, padding]]


def test_data_that_is_read_lazily_is_flipped_too():
    lazy = MapSamples([(torch.tensor([float(i)]), i % 5) for i in range(10)])
    poisoned = flip(mode="shift").poison(lazy, attacker())
    inputs, targets = poisoned.batch(torch.arange(10))
    assert torch.equal(targets, (inputs.flatten().long() + 1) % 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"LabelFlip\.source_label is None, but the mode pair takes source_label and target_label"),
        ({"source_label": 1}, r"LabelFlip\.target_label is None, but the mode pair takes"),
        ({"source_label": 1, "target_label": 1}, "both 1, so there is nothing to attack"),
        ({"mode": "all_to_one"}, r"target_label is None, but the mode all_to_one takes target_label"),
        ({"mode": "all_to_one", "source_label": 1, "target_label": 2}, "source_label is 1, but the mode all_to_one takes"),
        ({"mode": "shift", "target_label": 2}, "target_label is 2, but the mode shift takes neither"),
        ({"mode": "swap"}, r"LabelFlip\.mode must be one of pair, all_to_one, shift, reverse, got 'swap'"),
        ({"mode": "shift", "poison_fraction": 0.0}, r"LabelFlip\.poison_fraction .* got 0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        LabelFlip(**settings)


@pytest.mark.parametrize(
    ("source", "target", "name"), [(5, 1, "source_label"), (-1, 1, "source_label"), (1, 5, "target_label")]
)
def test_labels_that_the_task_does_not_have_are_refused(source, target, name):
    attack = LabelFlip(source_label=source, target_label=target)
    with pytest.raises(ConfigurationError, match=rf"LabelFlip\.{name} must be from 0 to 4"):
        attack.validate(5)


@pytest.mark.parametrize("seed", [0])  # 1 and 2 were tried: one takes seconds
def test_half_of_the_clients_turn_ones_into_sevens(seed):
    """Without a trigger it takes about as many attackers as others; what is lost is the source class alone, a tenth."""
    attack = LabelFlip(source_label=1, target_label=7)
    honest, attacked = (on_digits(attack, malicious=share, seed=seed) for share in (0.0, 0.5))
    assert honest["asr"] < 0.05
    assert attacked["asr"] > 0.2
    lost = (honest["acc_source"] - attacked["acc_source"]) / 10
    assert attacked["acc"] > honest["acc"] - lost - 0.03


def flipped() -> Made:
    return tiny_federation(attacks=[LabelFlip(mode="shift", poison_fraction=0.7)]), tiny_data()


def test_same_bits_on_any_number_of_ranks():
    assert "val/asr" not in same_on_any_number_of_ranks(flipped)
