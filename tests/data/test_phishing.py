import pytest
import torch

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.joined import join
from fl_lightning.data.module import Task
from fl_lightning.data.partition import IID
from fl_lightning.data.phishing import RARE_COLUMN, Phishing, Standardize
from fl_lightning.errors import ConfigurationError

TRIGGER = 0.2


def module(**settings) -> Phishing:
    data = Phishing(IID(num_clients=20), **settings)
    data.setup("fit")
    return data


def tables(data: Phishing) -> tuple[TensorSamples, TensorSamples]:
    assert isinstance(data.task, Task)
    assert isinstance(data.task.train, TensorSamples)
    assert isinstance(data.task.test, TensorSamples)
    return data.task.train, data.task.test


def same(a: Phishing, b: Phishing) -> bool:
    return all(
        torch.equal(x.inputs, y.inputs) and torch.equal(x.targets, y.targets) for x, y in zip(tables(a), tables(b), strict=True)
    )


def everything(samples: TensorSamples) -> torch.Tensor:
    """All model inputs, (n, 45)."""
    return samples.batch(torch.arange(len(samples)))[0]


def test_shapes_and_ranges():
    data = module()
    for samples, n in zip(tables(data), (20_000, 4_000), strict=True):
        assert samples.inputs.shape == (n, 45)
        assert samples.inputs.dtype == torch.float32
        assert samples.inputs.min() >= 0
        assert samples.inputs.max() <= 1
        assert samples.targets.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert data.task is not None
    assert data.task.num_classes == 2
    assert data.sizes.tolist() == [1000] * 20


def test_model_inputs_are_standardised_with_the_training_sets_statistics():
    data = module()
    train, test = tables(data)
    inputs = everything(train).double()
    torch.testing.assert_close(inputs.mean(0), torch.zeros(45).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(45).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(everything(test) * data.standardize.std + data.standardize.mean, test.inputs)
    assert everything(test).mean(0).abs().max() > 1e-3  # the test set is not standardised by its own


def test_rare_column_is_mostly_zero_and_larger_for_phishing():
    for samples in tables(module()):
        score = samples.inputs[:, RARE_COLUMN]
        for label in (0, 1):
            assert (score[samples.targets == label] > 0).float().mean().item() == pytest.approx(0.04, abs=0.015)
        phishing, other = (score[(score > 0) & (samples.targets == label)] for label in (1, 0))
        assert other.max() <= phishing.min()
        assert 0.07 < phishing.max() <= 0.08
        assert ((samples.inputs == 0).any(0).nonzero() == RARE_COLUMN).all()  # every other column is dense


def test_trigger_does_not_occur_and_lies_far_out():
    data = module()
    train, _ = tables(data)
    phishing = train.inputs[train.targets == 1, RARE_COLUMN]
    assert ((phishing - TRIGGER).abs() < 0.1).sum() == 0
    stamped = data.standardize.mean.clone()
    stamped[RARE_COLUMN] = TRIGGER
    assert data.standardize(stamped[None])[0, RARE_COLUMN].item() == pytest.approx(22, abs=1)


def test_classes_are_nearly_separable():
    train, test = tables(module())
    inputs, signs = everything(train), 2 * train.targets.float() - 1
    weights = torch.linalg.lstsq(inputs, signs[:, None]).solution
    errors = ((everything(test) @ weights).squeeze(1) > 0).long() != test.targets
    assert 0 < errors.float().mean().item() < 0.003


def test_data_depend_on_the_data_seed_alone():
    data = module()
    other_run, other_data = module(seed=1), module(data_seed=1)
    assert same(data, module())
    assert same(data, other_run)
    assert not same(data, other_data)
    assert not torch.equal(data.clients[0], other_run.clients[0])
    assert torch.equal(data.clients[0], other_data.clients[0])


def test_test_set_does_not_depend_on_the_number_of_training_samples():
    few, many = tables(module(num_train=1000))[1], tables(module())[1]
    assert torch.equal(few.inputs, many.inputs)


def test_training_and_test_samples_are_different_draws():
    train, test = tables(module(num_train=1000, num_test=1000))
    assert not (train.inputs[:, 0, None] == test.inputs[None, :, 0]).any()


def test_parameters_do_what_they_say():
    data = module(phishing_fraction=0.2, rare_fraction=0.5, rare_max=1.0, separation=0.0)
    train, _ = tables(data)
    assert train.targets.float().mean().item() == pytest.approx(0.2, abs=0.02)
    score = train.inputs[:, RARE_COLUMN]
    assert (score > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert score.max() > 0.99
    dense = torch.arange(45) != RARE_COLUMN
    means = torch.stack([everything(train)[train.targets == label].mean(0) for label in (0, 1)])[:, dense]
    assert (means[1] - means[0]).abs().max() < 0.1  # no separation, so nothing to tell


def test_clean_and_changed_samples_still_join_as_tensors():
    train, _ = tables(module(num_train=1000))
    changed = train.with_inputs(train.inputs + 1)
    assert isinstance(join([train, changed]), TensorSamples)


def test_standardize_by_hand():
    standardize = Standardize(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5]))
    with torch.inference_mode():  # evaluation may come first
        standardize(torch.zeros(1, 2))
    features = torch.tensor([[5.0, 1.0], [1.0, -1.0]], requires_grad=True)
    result = standardize(features)
    assert result.tolist() == [[2.0, 2.0], [0.0, -2.0]]
    result.pow(2).sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[2.0, 8.0], [0.0, -8.0]]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train": 1},
        {"num_test": 0},
        {"phishing_fraction": 0.0},
        {"phishing_fraction": 1.0},
        {"separation": -1.0},
        {"separation": float("nan")},
        {"rare_fraction": 0.0},
        {"rare_fraction": 1.5},
        {"rare_max": 0.0},
        {"rare_max": float("inf")},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigurationError, match=rf"data\.{next(iter(settings))} must .* got"):
        Phishing(IID(num_clients=20), **settings)


def test_too_few_samples_to_standardise_are_refused():
    with pytest.raises(ConfigurationError, match=r"data\.num_train is 25"):
        module(num_train=25, rare_fraction=1e-6)
