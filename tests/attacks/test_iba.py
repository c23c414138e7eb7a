"""IBA: the transform, its eps, phases, batches, the loss, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuned_patterns import attacker, network
from worlds import images

from fl_lightning.attacks import F3BA, IBA, Broadcast, Collude, PixelTrigger
from fl_lightning.attacks.both_ways import BothWays
from fl_lightning.attacks.trigger_generator import TriggerGenerator
from fl_lightning.data import Samples, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.errors import ConfigurationError

SMALL: dict[str, Any] = {"target_label": 1, "width": 2, "generator_epochs": 2, "batch_size": 16, "start_asr": 0.0}


def small(**settings: Any) -> IBA:
    return IBA(**{**SMALL, **settings})


def planned(attack: IBA, data: Samples | None = None, rounds: int = 1, module: nn.Module | None = None) -> IBA:
    for t in range(rounds):
        attack.plan(module or network(), [images(prepare=normalize) if data is None else data], [attacker(t=t)])
    return attack


def generated(attack: IBA, unit: Tensor) -> Tensor:
    assert attack.generator is not None
    return attack.generator(unit).detach()


def floats(n: int = 12) -> TensorSamples:
    """Pictures in [-0.3, 0.7]."""
    return TensorSamples(torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3, torch.arange(n) % 4)


# ---- the transform ---------------------------------------------------------------------------------------------------


def test_floats_are_changed_by_eps_in_units_of_their_range_and_clipped():
    attack = planned(small(eps=0.4, eps_test=0.1, value_range=(-0.3, 0.7)), floats())
    raw = floats().inputs
    changes = generated(attack, raw + 0.3)
    for trigger, eps in ((attack.train_trigger, 0.4), (attack.test_trigger, 0.1)):
        expected = torch.minimum(torch.maximum(raw + eps * changes, torch.tensor(-0.3)), torch.tensor(0.7))
        torch.testing.assert_close(trigger(raw), expected, rtol=0, atol=1e-6)
        assert 0 < (trigger(raw) - raw).abs().max() <= eps + 1e-6
    assert (attack.train_trigger(raw) == 0.7).any(), "some pixels are clipped"


def test_bytes_are_changed_as_floats_and_rounded():
    attack = planned(small(eps=0.2, eps_test=0.2))
    raw = images().inputs
    unit = raw.float() / 255
    expected = ((unit + 0.2 * generated(attack, unit)).clamp(0, 1) * 255).round()
    found = attack.test_trigger(raw)
    assert found.dtype == torch.uint8
    assert (found.float() - expected).abs().max() <= 1
    assert (found.float() - raw.float()).abs().max() <= math.ceil(0.2 * 255)


def test_before_the_first_attacked_round_pictures_are_as_they_are():
    attack, data = small(value_range=(-0.3, 0.7)), floats()
    stamped = attack.stamp(data)
    assert stamped is not None
    assert stamped.targets.unique().tolist() == [1]
    assert len(stamped) == int((data.targets != 1).sum())
    clean = data.inputs[data.targets != 1]
    assert torch.equal(stamped.batch(torch.arange(len(stamped)))[0], clean)
    planned(attack, data)
    assert not torch.equal(stamped.batch(torch.arange(len(stamped)))[0], clean), "the generator of the moment"


def test_eps_falls_and_stays_above_that_of_the_test():
    attack = IBA(eps=0.3, eps_test=0.05, eps_decay=0.001)
    found = [attack.eps_at(t) for t in (0, 1, 100, 10_000)]
    assert found == pytest.approx([0.3, 0.2997, 0.3 * 0.999**100, 0.05])


def test_a_pictures_trigger_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    for across in (True, False):
        generator, pictures = TriggerGenerator(1, width=3, across=across), torch.rand(5, 1, 7, 9)
        together = generator(pictures)
        assert together.shape == pictures.shape
        assert together.abs().max() < 1
        alone = torch.cat([generator(one[None]) for one in pictures])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["unet", "autoencoder"])
def test_the_generator_learns_what_the_model_takes_for_the_target(optimizer: Any, kind: Any):
    data, module = floats(40), network()
    rates = {"sgd": 0.05, "adam": 0.01}
    settings: dict[str, Any] = {"eps": 0.9, "eps_test": 0.9, "generator_epochs": 15, "width": 4, "value_range": (-0.3, 0.7)}
    attack = small(**settings, generator_optimizer=optimizer, generator_lr=rates[optimizer], network=kind)

    def loss() -> float:
        stamped = attack.stamp(data)
        assert stamped is not None
        inputs, targets = stamped.batch(torch.arange(len(stamped)))
        return nn.functional.cross_entropy(module(inputs), targets).item()

    before = loss()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    planned(attack, data, module=module)
    assert loss() < before - 0.1
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def weights(attack: IBA) -> list[float]:
    assert attack.generator is not None
    return torch.cat([p.detach().flatten() for p in attack.generator.parameters()]).tolist()


@pytest.mark.parametrize(
    ("retrain", "trained"), [("never", [0]), ("alternate", [0, 2]), ("always", [0, 1, 2])], ids=["never", "alternate", "always"]
)
def test_once_they_poison_the_generator_is_trained_as_asked(retrain: Any, trained: list[int]):
    attack, before, found = small(retrain=retrain), list[float](), list[int]()
    for t in range(3):
        attack.plan(network(), [images(prepare=normalize)], [attacker(t=t)])
        found += [t] if weights(attack) != before else []
        before = weights(attack)
    assert found == trained


def test_until_the_generator_is_good_enough_nothing_is_poisoned():
    data = images(prepare=normalize)
    waiting, poisoning = planned(small(start_asr=1.0, eps=0.01, eps_test=0.01)), planned(small(start_asr=0.0))
    alone = planned(small(alpha=1.0))
    assert (waiting.poisons, poisoning.poisons) == (False, True)
    assert waiting.poison(data, attacker()) is data is alone.poison(data, attacker())
    assert isinstance(poisoning.poison(data, attacker()), BothWays)
    assert weights(planned(waiting)) != weights(planned(small(start_asr=1.0, eps=0.01, eps_test=0.01))), "it goes on learning"


def test_a_batch_holds_each_sample_both_ways():
    attack, data = planned(small(eps=0.5, eps_test=0.1, value_range=(-0.3, 0.7)), floats()), floats()
    rows = torch.tensor([3, 0, 7])
    poisoned = attack.poison(data, attacker())
    inputs, targets = poisoned.batch(rows)
    assert torch.equal(inputs[:3], data.inputs[rows])
    torch.testing.assert_close(inputs[3:], attack.train_trigger(data.inputs[rows]))
    assert targets.tolist() == [3, 0, 3, 1, 1, 1]
    half = poisoned.subset(torch.tensor([7, 3]))
    assert torch.equal(half.batch(torch.tensor([1]))[0], poisoned.batch(torch.tensor([3]))[0])
    nothing = torch.empty(0, dtype=torch.int64)
    assert len(poisoned.subset(nothing)) == len(attack.poison(data.subset(nothing), attacker())) == 0
    pool, empty = Collude().conspire([poisoned, half], [attacker(), attacker(1)])
    assert (len(pool), len(empty)) == (14, 0)
    assert torch.equal(pool.batch(torch.tensor([12]))[0], poisoned.batch(torch.tensor([7]))[0])
    with pytest.raises(ConfigurationError, match=r"each sample both ways"):
        poisoned[0]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_the_two_terms_are_weighed(alpha):
    attack, module = planned(small(alpha=alpha)), network()
    inputs, targets = torch.randn(6, 3, 8, 8), torch.tensor([0, 2, 3, 1, 1, 1])
    if alpha == 1:
        inputs, targets = inputs[:3], targets[:3]
    own = nn.functional.cross_entropy(module(inputs), targets)
    found = attack.loss(module, (inputs, targets), own, Broadcast(torch.empty(0)))
    each = nn.functional.cross_entropy(module(inputs), targets, reduction="none")
    expected = own if alpha == 1 else alpha * each[:3].mean() + (1 - alpha) * each[3:].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.requires_grad
    assert attack.replaces_loss is not attack.keeps_loss is (alpha != 0.25)


def test_state_goes_on_where_it_was():
    once, other = planned(small(retrain="always")), small(retrain="always")
    other.load_state_dict(once.state_dict())
    raw = images().inputs
    assert torch.equal(once.test_trigger(raw), other.test_trigger(raw))
    for attack in (once, other):
        attack.plan(network(), [images(prepare=normalize)], [attacker(t=1)])
    assert weights(once) == weights(other)
    fresh = small()
    fresh.load_state_dict(small().state_dict())
    assert fresh.generator is None


# ---- hostile input ---------------------------------------------------------------------------------------------------


def test_a_model_of_nan_leaves_a_generator_of_numbers():
    module = network()
    for parameter in module.parameters():
        parameter.data.fill_(math.nan)
    assert all(map(math.isfinite, weights(planned(small(), module=module))))


def test_attackers_with_the_targets_samples_alone_see_no_asr():
    data = TensorSamples(images().inputs, torch.ones(40, dtype=torch.int64), prepare=normalize)
    assert not planned(small(start_asr=0.5), data).poisons


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"IBA\.alpha must be more than 0 and at most 1, got 0\.0"),
        ({"eps": 1.5}, r"IBA\.eps must be more than 0 and at most 1, got 1\.5"),
        ({"eps_test": 0.4}, r"IBA\.eps_test must be at most eps, which is 0\.3, got 0\.4"),
        ({"eps_decay": 1.0}, r"IBA\.eps_decay must lie in \[0, 1\), got 1\.0"),
        ({"start_asr": -0.1}, r"IBA\.start_asr must lie in \[0, 1\], got -0\.1"),
        ({"stop_asr": math.nan}, r"IBA\.stop_asr must be more than 0 and at most 1, got nan"),
        ({"retrain": "sometimes"}, r"IBA\.retrain must be one of never, alternate, always, got 'sometimes'"),
        ({"network": "gan"}, r"IBA\.network must be one of unet, autoencoder, got 'gan'"),
        ({"generator_optimizer": "rprop"}, r"IBA\.generator_optimizer must be one of sgd, adam, got 'rprop'"),
        ({"width": 0}, r"IBA\.width must be at least 1, got 0"),
        ({"generator_lr": math.inf}, r"IBA\.generator_lr must be more than 0 and finite, got inf"),
        ({"value_range": (1.0, 0.0)}, r"IBA\.value_range must be two finite numbers, smaller first"),
        ({"value_range": (0.0, 1.0, 2.0)}, r"IBA\.value_range must be two finite numbers, .* got \[0\.0, 1\.0, 2\.0\]"),
        ({"value_range": "ab"}, r"IBA\.value_range must be two finite numbers, smaller first, got 'ab'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        IBA(**settings)


def test_shares_of_a_batch_are_refused_before_training():
    for attacks in ([IBA(), F3BA()], [PixelTrigger(per_batch=True), IBA()], [IBA(), IBA()]):
        with pytest.raises(ConfigurationError, match=r"IBA and \w+ do not go together so: .* leave out the other's per_batch"):
            next(of for of in attacks if isinstance(of, IBA)).meet(attacks)
    attack = IBA()
    attack.meet([PixelTrigger(), attack])


def test_pictures_out_of_the_range_and_tables_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"IBA\.value_range is \[0\.0, 1\.0\], but raw pixels .* lie between -0\.\d+ and"
    ):
        small().stamp(floats())
    with pytest.raises(ConfigurationError, match=r"IBA\.value_range is \[-5\.0, 300\.0\], but the pixels .* are bytes; use"):
        small(value_range=(-5.0, 300.0)).stamp(images())  # 300 would come out as 44
    with pytest.raises(ConfigurationError, match=r"IBA needs raw images"):
        small().stamp(TensorSamples(torch.zeros(4, 6), torch.arange(4)))
