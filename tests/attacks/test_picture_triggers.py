"""Triggers on pictures: which classes become which in every target mode, blended and sinusoidal stamps, and their ASR."""

from typing import Any

import numpy as np
import pytest
import torch
from effect import on_digits
from worlds import Made, image_federation, images, same_on_any_number_of_ranks

from fl_lightning.attacks import DBA, Attacker, Blended, PixelTrigger, Sinusoidal
from fl_lightning.attacks.blended import Blend, uniform_noise
from fl_lightning.attacks.picture_trigger import PictureTrigger
from fl_lightning.attacks.sinusoidal import Waves
from fl_lightning.attacks.target_modes import TargetMode
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError

CLASSES = 4
AIMS: dict[str, dict[str, Any]] = {
    "all_to_one": {"target_label": 2},
    "one_to_one": {"target_label": 2, "source_label": 0},
    "all_to_all": {"target_label": None},
    "clean_label": {"target_label": 2},
}


def pictures() -> TensorSamples:
    """Bytes between 40 and 140, so that every trigger changes them; all of four classes."""
    draws = torch.Generator().manual_seed(3)
    return TensorSamples(torch.randint(40, 140, (40, 1, 8, 8), generator=draws).byte(), torch.arange(40) % CLASSES)


def triggers(mode: Any) -> dict[str, PictureTrigger]:
    common: dict[str, Any] = {"target_mode": mode, "poison_fraction": 1.0, **AIMS[mode]}
    return {
        "PixelTrigger": PixelTrigger(**common),
        "DBA": DBA(strip_length=3, gap=2, **common),
        "Blended": Blended(ratio=0.4, **common),
        "Sinusoidal": Sinusoidal(frequency=1.5, **common),
    }


def by_hand(mode: str, y: int) -> tuple[bool, int, bool]:
    """Whether a sample of class y may be stamped in training, what it becomes, and whether ASR counts it."""
    if mode == "all_to_one":
        return True, 2, y != 2
    if mode == "one_to_one":
        return y == 0, 2, y == 0
    if mode == "all_to_all":
        return True, [1, 2, 3, 0][y], True
    return y == 2, 2, y != 2


@pytest.mark.parametrize("name", ["PixelTrigger", "DBA", "Blended", "Sinusoidal"])
@pytest.mark.parametrize("mode", AIMS)
def test_target_modes(mode, name):
    attack, data = triggers(mode)[name], pictures()
    attack.validate(CLASSES)
    aims = [by_hand(mode, y) for y in data.targets.tolist()]
    found, targets = attack.poison(data, Attacker(client=0, seed=0, pool=data)).batch(torch.arange(40))
    changed = (found != data.inputs).flatten(1).any(1)
    assert changed.tolist() == [able for able, _, _ in aims]
    true = data.targets.tolist()
    assert targets.tolist() == [wanted if able else y for (able, wanted, _), y in zip(aims, true, strict=True)]
    stamped = attack.stamp(data)
    assert stamped is not None
    assert stamped.targets.tolist() == [wanted for _, wanted, counts in aims if counts]
    assert (attack.target_label, attack.source_label) == (AIMS[mode].get("target_label"), AIMS[mode].get("source_label"))


def test_asr_of_all_to_all_is_the_share_of_the_next_class():
    aim = TargetMode("all_to_all", None, None, "PixelTrigger")
    aim.check(3)
    wanted = aim.wanted(torch.tensor([0, 1, 2, 2]))
    assert (wanted == torch.tensor([1, 2, 0, 2])).double().mean() == 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_mode": "all"}, r"Blended\.target_mode must be one of all_to_one, .*, got 'all'"),
        ({"target_mode": "all_to_all"}, r"target_label is 0, but target_mode all_to_all takes neither .*; set both to null"),
        ({"target_mode": "one_to_one"}, r"source_label is null, but .* one_to_one takes source_label and target_label"),
        ({"source_label": 1}, r"source_label is 1, but target_mode all_to_one takes target_label"),
        ({"target_label": None}, r"target_label is null, but target_mode all_to_one takes target_label"),
        ({"target_mode": "one_to_one", "source_label": 0}, r"source_label and target_label are both 0"),
        ({"ratio": 0.0}, r"Blended\.ratio must be more than 0 and at most 1, got 0\.0"),
        ({"pattern_seed": -1}, r"Blended\.pattern_seed must be a whole number from 0"),
        ({"scale": [1.0, 0.0]}, r"Blended\.scale must be .* got \[1\.0, 0\.0\]"),
        ({"scale": [0.0]}, r"Blended\.scale must be"),
        ({"poison_fraction": 0.0}, r"Blended\.poison_fraction must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Blended(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 1.5}, r"Sinusoidal\.delta must be more than 0 and at most 1.*got 1\.5"),
        ({"frequency": 0.0}, r"Sinusoidal\.frequency must be more than 0 and finite, got 0\.0"),
    ],
)
def test_waves_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Sinusoidal(**settings)


def test_labels_are_checked_against_the_task():
    for label, name in ((9, "target_label"), (-1, "target_label")):
        with pytest.raises(ConfigurationError, match=rf"Blended\.{name} must be from 0 to 3"):
            Blended(target_label=label).validate(CLASSES)
    with pytest.raises(ConfigurationError, match=r"Blended\.source_label must be from 0 to 3"):
        Blended(target_mode="one_to_one", source_label=7).validate(CLASSES)


@pytest.mark.parametrize("attack", [Blended(), Sinusoidal(frequency=1.0)])
def test_pictures_beyond_the_scale_are_refused(attack):
    digits = TensorSamples(torch.full((3, 1, 8, 8), -0.3), torch.ones(3))
    with pytest.raises(ConfigurationError, match=r"scale is \[0\.0, 1\.0\], but a picture's raw pixels lie between -0\.3"):
        attack.poison(digits, Attacker(client=0, seed=0, pool=digits))
    beyond = type(attack)(scale=[-1.0, 255.0])
    with pytest.raises(ConfigurationError, match="pixels of this task are bytes"):
        beyond.stamp(pictures())


def test_waves_on_zeros_alone_are_refused():
    with pytest.raises(ConfigurationError, match=r"images have 8 columns, each of which lies at a zero .* no multiple of 4"):
        Sinusoidal(frequency=4.0).stamp(pictures())


# ---- the stamps ------------------------------------------------------------------------------------------------------


def test_waves_are_those_of_the_formula():
    image = torch.full((1, 3, 32, 32), 0.5)
    found = (Waves(20 / 255, 6.0)(image) - 0.5)[0, 1, 7]
    expected = [0.0, 0.072461, 0.055459, -0.030014, -0.078431, -0.030014]
    np.testing.assert_allclose(found[:6], expected, atol=1e-6)
    by_hand = [20 / 255 * np.sin(2 * np.pi * j * 6 / 32) for j in range(32)]
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    of_bytes = Waves(20 / 255, 6.0)(torch.full((1, 1, 2, 32), 250, dtype=torch.uint8))
    np.testing.assert_array_equal(of_bytes[0, 0, 0], [min(255, round(250 + 255 * wave)) for wave in by_hand])
    assert Waves(1.0, 6.0)(image).aminmax() == (0.0, 1.0)  # clipped


def test_blending_is_that_of_the_formula(monkeypatch):
    monkeypatch.setattr("fl_lightning.attacks.blended.uniform_noise", lambda *_: torch.tensor([[[1.0, 0.0]]]))
    image = torch.tensor([[[[0.2, 1.0]]]])
    np.testing.assert_allclose(Blend(0.2, 0)(image).flatten(), [0.36, 0.8], atol=1e-7)
    np.testing.assert_allclose(Blend(0.2, 0, (-1.0, 1.0))(image).flatten(), [0.36, 0.6], atol=1e-7)
    assert Blend(0.2, 0)(torch.tensor([[[[51, 254]]]], dtype=torch.uint8)).flatten().tolist() == [92, 203]


def test_the_noise_is_the_same_everywhere_and_of_its_seed():
    shape, cpu = (3, 8, 8), torch.device("cpu")
    first = uniform_noise(1, shape, cpu).clone()
    uniform_noise.cache_clear()
    torch.manual_seed(9)
    assert torch.equal(uniform_noise(1, shape, cpu), first)
    assert not torch.equal(uniform_noise(2, shape, cpu), first)
    assert 0.4 < first.mean() < 0.6
    assert 0 <= first.min() < 0.1 < 0.9 < first.max() < 1


def test_augmented_pictures_are_stamped_afterwards():
    data = TensorSamples(pictures().inputs, pictures().targets, augment=lambda x, _: x.flip(-1))
    attack = Blended(ratio=0.4, poison_fraction=1.0)
    attack.validate(CLASSES)
    found, _ = attack.poison(data, Attacker(client=0, seed=0, pool=data)).batch(torch.arange(40), torch.Generator())
    assert torch.equal(found, attack.trigger(data.inputs.flip(-1)))


# ---- in a federation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        Blended(ratio=0.3, scale=[-0.3, 0.7]),
        PixelTrigger(height=2, width=2, value=0.7, target_mode="one_to_one", source_label=3, poison_fraction=1.0),
        PixelTrigger(height=2, width=2, value=0.7, target_mode="all_to_all", target_label=None, poison_fraction=0.5),
    ],
    ids=["Blended", "one to one", "all to all"],
)
def test_federated_averaging_learns_it(attack):
    honest, attacked = (on_digits(attack, malicious=share, seed=0) for share in (0.0, 0.2))
    assert honest["asr"] < 0.1
    assert attacked["asr"] > honest["asr"] + 0.25
    assert attacked["acc"] > 0.85


def two_triggers() -> Made:
    return image_federation(Sinusoidal(frequency=1.5, target_mode="all_to_all", target_label=None, poison_fraction=0.5))


def test_same_bits_on_any_number_of_ranks():
    assert 0 <= same_on_any_number_of_ranks(two_triggers)["val/asr"] <= 1
    assert images().inputs.dtype == torch.uint8
