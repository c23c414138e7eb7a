"""F3BA: the ascent on the pattern, what clients start from, and who is refused."""

import copy
from typing import Any

import pytest
import torch
from rows import NAN
from tiny import fit, tiny_federation
from torch import Tensor, nn
from worlds import images

from fl_lightning import CohortSampler, FederatedDataModule
from fl_lightning.attacks import F3BA, Attacker, Broadcast
from fl_lightning.data import IID, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import CNN
from fl_lightning.updates import parameter_layout
from fl_lightning.updates.layers import layers_of


def small(**settings: Any) -> F3BA:
    chosen: dict[str, Any] = {
        "row": 1,
        "column": 3,
        "height": 2,
        "width": 2,
        "target_label": 2,
        "conv_rate": 0.1,
        "fc_rate": 0.05,
    }
    return F3BA(**{**chosen, **settings})


def network() -> CNN:
    torch.manual_seed(0)
    return CNN(image_size=8, channels=(4, 4), hidden=8, num_classes=4)


def attacker(t: int = 0) -> Attacker:
    return Attacker(client=0, seed=0, pool=images(), round_number=t)


def planned(attack: F3BA, data: TensorSamples, rounds: int = 1, module: nn.Module | None = None) -> F3BA:
    for t in range(rounds):
        attack.plan(network() if module is None else module, [data], [attacker(t)])
    return attack


def sent(module: nn.Module) -> Broadcast:
    """The module's weights, and a step before that moved all of them, every second one towards zero."""
    weights = parameter_layout(module).flatten(module)
    steps = 0.01 * torch.randn(len(weights), generator=torch.Generator().manual_seed(3))
    return Broadcast(weights, steps, 5)


# ---- the pattern -----------------------------------------------------------------------------------------------------


def test_a_step_of_the_ascent_by_hand():
    """p + .5 * gradient, on the scale of bytes, of the mean norm of what the first layer changes by."""
    data, module = images(10, prepare=normalize), network()
    attack = planned(small(lent=0.99, trigger_passes=1, trigger_lr=0.5), data, module=module)
    lent = attack._divided(data, attacker())[1]
    assert isinstance(lent, TensorSamples)
    pattern = torch.full((3, 2, 2), 0.625 * 255, requires_grad=True)
    painted = lent.inputs.float().clone()
    painted[:, :, 1:3, 3:5] = pattern
    first = module.features[0]
    change = first(normalize(painted)) - first(normalize(lent.inputs.float()))
    change.flatten(1).norm(dim=1).mean().backward()
    assert pattern.grad is not None
    expected = (pattern.detach() + 0.5 * 255**2 * pattern.grad).clamp(0, 255)
    assert attack.pattern is not None
    torch.testing.assert_close(attack.pattern, expected, rtol=1e-4, atol=1e-2)
    assert ((attack.pattern > 0) & (attack.pattern < 255)).any(), "not all at the bounds"


def test_the_pattern_stays_within_its_range_and_excites_more():
    data, module = images(40, prepare=normalize), network()
    attack = planned(small(trigger_lr=0.01, value_range=(20.0, 220.0), trigger_passes=6), data, module=module)
    assert attack.pattern is not None
    assert attack.pattern.min() >= 20
    assert attack.pattern.max() <= 220

    def excitement(pattern: Tensor) -> float:
        painted = data.inputs.float().clone()
        painted[:, :, 1:3, 3:5] = pattern
        first = module.features[0]
        return float((first(normalize(painted)) - first(normalize(data.inputs.float()))).flatten(1).norm(dim=1).mean())

    assert excitement(attack.pattern) > excitement(torch.full((3, 2, 2), 145.0))


def test_what_is_lent_is_not_trained_on():
    data, attack = images(40), small(lent=0.25, per_batch=False, poison_fraction=0.5)
    kept, lent = attack._divided(data, attacker())
    assert (len(kept), len(lent)) == (30, 10)
    poisoned = attack.poison(data, attacker(t=4))
    assert len(poisoned) == 30
    assert torch.equal(attack._divided(data, attacker(t=9))[1].targets, lent.targets), "the same in every round"
    assert len(attack.poison(data.subset(torch.arange(1)), attacker())) == 1


# ---- the flips -------------------------------------------------------------------------------------------------------


def flips(attack: F3BA, module: nn.Module, broadcast: Broadcast) -> dict[str, int]:
    """How many signs of each tensor `begin` flips, of a module with the broadcast weights; no magnitude may change."""
    changed = copy.deepcopy(module)
    attack.begin(changed, broadcast)
    counts = {}
    for (name, old), new in zip(module.named_parameters(), changed.parameters(), strict=True):
        assert torch.equal(old.abs(), new.abs())
        counts[name] = int((old != new).sum())
    return {name: count for name, count in counts.items() if count}


def test_convolutions_are_flipped_every_turn_and_linear_layers_every_third():
    data, module = images(60, prepare=normalize), network()
    attack, found = small(conv_rate=0.5, fc_rate=0.5), []
    for t in range(6):
        attack.plan(module, [data], [attacker(t)])
        found.append(set(flips(attack, module, sent(module))))
    convolutions = {"features.0.weight", "features.3.weight"}
    assert found == [*2 * [convolutions], convolutions | {"classifier.0.weight"}] * 2


def test_only_candidates_are_flipped():
    data, module = images(60, prepare=normalize), network()
    found = flips(planned(small(conv_rate=0.1), data, module=module), module, sent(module))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    assert found
    assert all(count <= max(1, round(0.1 * sizes[name])) for name, count in found.items())


def test_before_any_global_step_nothing_is_flipped():
    module = network()
    nothing = Broadcast(sent(module).weights, torch.zeros_like(sent(module).weights))
    assert flips(planned(small(conv_rate=0.9), images(60, prepare=normalize), module=module), module, nothing) == {}


def test_later_layers_see_the_flips_before_them():
    """The second convolution's signs follow inputs that the flipped first one gives."""
    data, module = images(60, prepare=normalize), network()
    attack, broadcast = planned(small(conv_rate=0.9), data, module=module), sent(module)
    both = attack.flip(module, broadcast)
    flipped_first = copy.deepcopy(module)
    with torch.no_grad():
        flipped_first.get_parameter("features.0.weight").copy_(both["features.0.weight"])
    again = attack.flip(flipped_first, broadcast)  # scores are the broadcast's, so that candidates are the same
    assert torch.equal(again["features.3.weight"], both["features.3.weight"])


class Starts(F3BA):
    """Keeps what clients start from, and the broadcast."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.starts: list[tuple[int, Tensor, Tensor]] = []

    def begin(self, module, broadcast):
        super().begin(module, broadcast)
        self.starts.append((broadcast.round_number, parameter_layout(module).flatten(module), broadcast.weights.clone()))


def test_in_a_federation_attackers_start_alike_from_flipped_weights_and_others_do_not():
    attack = Starts(row=0, column=0, height=2, width=2, target_label=0, conv_rate=0.2)
    cohort = CohortSampler(clients_per_round=6, malicious_fraction=0.34)
    federation = tiny_federation(client=network(), attacks=[attack], cohort=cohort)
    data = FederatedDataModule.from_datasets(
        images(150, prepare=normalize), images(40, prepare=normalize), partition=IID(num_clients=9), num_classes=4
    )
    fit(federation, data, rounds=3)
    for t in range(3):
        starts = [(start, global_) for round_, start, global_ in attack.starts if round_ == t]
        assert len(starts) == 2
        assert torch.equal(starts[0][0], starts[1][0])
        assert torch.equal(starts[0][0].abs(), starts[0][1].abs())
        assert torch.equal(starts[0][0], starts[0][1]) == (t == 0), "in the first round nothing has moved"
    assert attack.turns == 3


# ---- who is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_rate": 1.0}, r"conv_rate must lie in \(0, 1\), got 1.0"),
        ({"lent": 0.0}, r"lent must lie in \(0, 1\), got 0.0"),
        ({"fc_every": 0}, "fc_every must be at least 1, got 0"),
        ({"trigger_lr": NAN}, "trigger_lr must be more than 0 and finite, got nan"),
        ({"value_range": (1.0, 0.0)}, r"value_range must be two finite numbers, smaller first, got \[1.0, 0.0\]"),
        ({"value_range": (0.0,)}, r"value_range must be two finite numbers, smaller first, got \[0\.0\]"),
        ({"value_range": 3}, "value_range must be two finite numbers, smaller first, got 3"),
        ({"poison_fraction": 0.0}, "poison_fraction must be more than 0 and at most 1, got 0.0; 0.4 is usual"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=rf"F3BA\.{message}"):
        small(**settings)


def test_a_model_of_one_layer_is_refused_before_training():
    with pytest.raises(ConfigurationError, match=r"F3BA flips weights of linear .* but the model has only w of this kind"):
        small().check_model(layers_of(["w", "b", "norm"], [(4, 3), (4,), (4,)]))
