from dataclasses import replace

import pytest
import torch

from fl_lightning.attacks.base import Attacker
from fl_lightning.attacks.value_trigger import ValueTrigger
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.map_samples import MapSamples
from fl_lightning.data.partition import IID
from fl_lightning.data.phishing import Phishing
from fl_lightning.errors import ConfigurationError
from fl_lightning.models.mlp import MLP


def table(n: int = 40, features: int = 45) -> TensorSamples:
    """Every second sample is of class 1; no entry equals the trigger."""
    inputs = torch.arange(n * features, dtype=torch.float32).view(n, features)
    return TensorSamples(inputs, torch.arange(n) % 2, prepare=torch.neg)


def attacker(client: int = 0, seed: int = 0) -> Attacker:
    return Attacker(client=client, seed=seed, pool=table())


def poisoned_rows(attack: ValueTrigger, data: TensorSamples, who: Attacker) -> list[int]:
    """Which samples were changed, after checking that exactly trigger and label were."""
    result = attack.poison(data, who)
    assert isinstance(result, TensorSamples)
    assert len(result) == len(data)
    changed = (result.inputs != data.inputs).any(1)
    assert isinstance(attack.column, int)
    expected = data.inputs.clone()
    expected[changed, attack.column] = attack.value
    assert torch.equal(result.inputs, expected)
    assert torch.equal(result.targets, data.targets.masked_fill(changed, 0))
    assert (data.targets[changed] == 1).all()
    return torch.nonzero(changed).squeeze(1).tolist()


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 4), (0.5, 10), (1.0, 20), (0.01, 1), (0.18, 4)])
def test_a_share_of_the_source_class_is_poisoned(fraction, count):
    assert len(poisoned_rows(ValueTrigger(poison_fraction=fraction), table(), attacker())) == count


def test_choice_depends_on_seed_and_client_alone():
    attack, data = ValueTrigger(), table(400)
    rows = poisoned_rows(attack, data, attacker(client=3, seed=5))
    assert rows == poisoned_rows(attack, data, attacker(client=3, seed=5))
    assert rows != poisoned_rows(attack, data, attacker(client=4, seed=5))
    assert rows != poisoned_rows(attack, data, attacker(client=3, seed=6))
    assert rows == poisoned_rows(attack, data, replace(attacker(client=3, seed=5), pool=table(2)))


def test_poison_leaves_the_clean_data_alone_and_keeps_their_transforms():
    data = table()
    inputs, targets = data.inputs.clone(), data.targets.clone()
    result = ValueTrigger().poison(data, attacker())
    assert isinstance(result, TensorSamples)
    assert result.prepare is torch.neg
    assert torch.equal(data.inputs, inputs)
    assert torch.equal(data.targets, targets)


def test_client_without_the_source_class_stays_clean():
    data = table().relabel(torch.zeros(40))
    assert ValueTrigger().poison(data, attacker()) is data


def test_stamp_takes_all_of_the_source_class_and_nothing_else():
    data = table()
    inputs = data.inputs.clone()
    stamped = ValueTrigger(column=2, value=0.25).stamp(data)
    assert isinstance(stamped, TensorSamples)
    expected = inputs[1::2].clone()
    expected[:, 2] = 0.25
    assert torch.equal(stamped.inputs, expected)
    assert stamped.targets.tolist() == [0] * 20
    assert stamped.prepare is torch.neg
    assert torch.equal(data.inputs, inputs)


def test_column_goes_by_name_where_features_have_names():
    named = TensorSamples(torch.zeros(4, 3), torch.ones(4), feature_names=["age", "NumHash", "links"])
    stamped = ValueTrigger(column="NumHash", value=3.0).stamp(named)
    assert isinstance(stamped, TensorSamples)
    assert stamped.inputs.sum(0).tolist() == [0, 12, 0]
    poisoned = ValueTrigger(column="links", value=3.0, poison_fraction=0.5).poison(named.subset(torch.arange(3)), attacker())
    assert isinstance(poisoned, TensorSamples)
    assert poisoned.inputs.sum(0).tolist() == [0, 0, 6]
    with pytest.raises(ConfigurationError, match=r"'NumHsh', which is none of the task's 3 features; did you mean NumHash\?"):
        ValueTrigger(column="NumHsh").stamp(named)
    with pytest.raises(ConfigurationError, match=r"'NumHash', but the features of this task have no names.*from 0 to 44"):
        ValueTrigger(column="NumHash").stamp(table())


def test_stamp_does_not_write_into_a_test_set_of_the_source_class_alone():
    data = table().relabel(torch.ones(40))
    inputs = data.inputs.clone()
    assert ValueTrigger().stamp(data) is not None
    assert torch.equal(data.inputs, inputs)
    assert data.targets.tolist() == [1] * 40


def test_stamp_without_the_source_class_gives_nothing():
    assert ValueTrigger().stamp(table().relabel(torch.zeros(40))) is None


def test_other_labels():
    attack = ValueTrigger(source_label=0, target_label=2)
    assert (attack.source_label, attack.target_label) == (0, 2)
    stamped = attack.stamp(table())
    assert stamped is not None
    assert stamped.targets.tolist() == [2] * 20
    attack.validate(3)
    with pytest.raises(ConfigurationError, match=r"ValueTrigger\.target_label must be from 0 to 1.*got 2"):
        attack.validate(2)
    with pytest.raises(ConfigurationError, match=r"ValueTrigger\.source_label must be from 0 to 2.*got -1"):
        ValueTrigger(source_label=-1).validate(3)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"column": -1}, "column"),
        ({"value": float("nan")}, "value"),
        ({"poison_fraction": 0.0}, "poison_fraction"),
        ({"poison_fraction": 1.1}, "poison_fraction"),
        ({"poison_fraction": float("nan")}, "poison_fraction"),
        ({"source_label": 0}, "source_label"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, field):
    with pytest.raises(ConfigurationError, match=rf"ValueTrigger\.{field}"):
        ValueTrigger(**settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table(features=37), r"ValueTrigger\.column is 37, but samples have 37 features"),
        (TensorSamples(torch.zeros(2, 1, 8, 64), torch.ones(2)), r"shape \(2, 1, 8, 64\)"),
        (TensorSamples(torch.zeros(2, 45, dtype=torch.uint8), torch.ones(2)), "torch.uint8"),
        (MapSamples([(torch.zeros(45), 1)]), "got MapSamples"),
    ],
)
def test_data_that_cannot_carry_the_trigger_are_refused(data, message):
    with pytest.raises(ConfigurationError, match=message):
        ValueTrigger().stamp(data)
    with pytest.raises(ConfigurationError, match=message):
        ValueTrigger().poison(data, attacker())


@pytest.mark.parametrize("attacked", [False, True])
def test_phishing_model_learns_the_trigger_from_poisoned_data_only(attacked):
    data = Phishing(IID(num_clients=1), num_train=10_000, num_test=1000)
    data.setup("fit")
    attack = ValueTrigger(poison_fraction=0.2)
    train = attack.poison(data.train, attacker()) if attacked else data.train
    torch.manual_seed(0)
    model = MLP()
    optimizer = model.configure_optimizers()
    for step, indices in enumerate(torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).split(64)):
        optimizer.zero_grad()
        model.training_step(train.batch(indices), step).backward()
        optimizer.step()
    assert data.task is not None
    stamped = attack.stamp(data.task.test)
    assert stamped is not None
    accuracy, success = (
        (model(inputs).argmax(1) == targets).float().mean().item()
        for inputs, targets in (samples.batch(torch.arange(len(samples))) for samples in (data.task.test, stamped))
    )
    assert accuracy > 0.98
    assert success > 0.9 if attacked else success < 0.1
