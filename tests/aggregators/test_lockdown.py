"""Lockdown: masks and what becomes of them, a client's steps, and the consensus."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny import CLASSES, TinyClient, fit, tiny_data, tiny_federation, tiny_tensors, vector
from torch import Tensor, nn

from fl_lightning import CohortSampler, ConfigurationError
from fl_lightning.aggregators import FedAvg, Lockdown
from fl_lightning.aggregators.sparse_masks import erk_densities, prune_and_regrow, random_mask
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layout import parameter_layout

D = 447


def client() -> TinyClient:
    torch.manual_seed(1)
    return TinyClient(dropout=0.0)


def locked(**kwargs: Any) -> Lockdown:
    settings: dict[str, Any] = {"rounds": 10, "batch_size": 8, **kwargs}
    rule = Lockdown(**settings)
    rule.check_model(parameter_layout(client()).layers)
    return rule


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.25, 0.6, 1.0])
def test_densities_add_up_and_follow_the_shapes(density: float) -> None:
    shapes = [(64, 3, 3, 3), (64,), (128, 64, 3, 3), (10, 128), (10,)]
    sizes = [math.prod(shape) for shape in shapes]
    found = erk_densities(shapes, density)
    assert sum(share * size for share, size in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    assert all(0 < share <= 1 for share in found)
    sparse = [(share, sum(shape) / size) for share, shape, size in zip(found, shapes, sizes, strict=True) if share < 1]
    assert len({round(share / raw, 6) for share, raw in sparse}) <= 1


def test_densities_by_hand() -> None:
    # 4,096 + 640 weights and 74 biases at .25 are 1,202.5; biases are dense, the weights share 1,128.5 as 64 + 64 to 10 + 64.
    found = erk_densities([(64, 64), (64,), (10, 64), (10,)], 0.25)
    assert found == pytest.approx([1128.5 * 128 / 202 / 4096, 1, 1128.5 * 74 / 202 / 640, 1])


def test_random_masks_hold_their_share_and_one_at_least() -> None:
    mask = random_mask([1000, 3], [0.25, 0.01], torch.Generator().manual_seed(0))
    assert (mask[:1000].sum(), mask[1000:].sum()) == (250, 1)
    assert 90 < mask[:400].sum() < 120


def test_pruned_are_the_smallest_and_regrown_where_the_gradient_is_largest() -> None:
    mask = torch.tensor([1.0, 1, 1, 1, 0, 0, 0])
    weights, gradient = torch.tensor([3.0, -0.1, 0.2, 2, 0, 0, 0]), torch.tensor([9.0, 0.5, 0.1, 9, 0.4, -0.6, 0])
    assert prune_and_regrow(mask, weights, gradient, 0.3).tolist() == [1, 1, 0, 1, 0, 1, 0]  # ceil(1.2) = 2; one comes back
    assert prune_and_regrow(mask, weights, gradient, 1e-9).tolist() == [1, 0, 1, 1, 0, 1, 0]  # one at least
    assert prune_and_regrow(mask, weights, 0 * gradient, 0.3).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert prune_and_regrow(mask, weights, gradient, 0.0).tolist() == mask.tolist()
    assert prune_and_regrow(torch.ones(3), weights[:3], gradient[:3], 1.0).tolist() == [1, 1, 1]


def test_share_that_is_pruned() -> None:
    rule = Lockdown(rounds=100, anneal=0.4)
    assert [rule.prune_share(t) for t in (0, 25, 50, 51, 99)] == pytest.approx([0.4, 0.2, 0, 0, 0])


# ---- a client --------------------------------------------------------------------------------------------------------


def slow_client(rule: Lockdown, module: TinyClient, mask: Tensor, samples: Any, draws: torch.Generator, l1: float) -> Tensor:
    """Steps by hand; the trained weights (d,)."""
    module.train()
    weights = mask * vector(module)
    for _ in range(rule.epochs):
        for rows in torch.randperm(len(samples), generator=draws).split(8):
            nn.utils.vector_to_parameters(weights, module.parameters())
            module.zero_grad()
            inputs, targets = samples.batch(rows)
            nn.functional.cross_entropy(module(inputs), targets).backward()
            gradient = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
            weights = weights - 0.1 * mask * (gradient + l1 * weights.sign() + 1e-4 * weights)
    nn.utils.vector_to_parameters(weights, module.parameters())
    return weights


@pytest.mark.parametrize(("t", "l1"), [(2, 0.01), (7, 0.0)], ids=["first half", "second half"])
def test_a_client_trains_under_its_mask_and_moves_it(t: int, l1: float) -> None:
    rule, samples = locked(anneal=0.2, l1=0.01), tiny_tensors(24)
    module, expected, memory = client(), client(), torch.zeros(D)
    start = vector(module).clone()
    rule.before_broadcast(module, t)
    logs = rule.train_benign(module, samples, CLASSES, torch.Generator().manual_seed(3), memory)
    mask = rule.first_mask
    trained = slow_client(rule, expected, mask, samples, torch.Generator().manual_seed(3), l1)
    update = start - vector(module)
    assert not update[mask == 0].any()  # zero outside of the mask it trained under
    torch.testing.assert_close(update[mask > 0], (start - trained)[mask > 0], rtol=0, atol=1e-5)
    assert 0 < logs["loss"] < 2
    share = rule.prune_share(t)
    assert memory.sum() == mask.sum()
    if not share:
        assert torch.equal(memory, mask)
        return
    expected.eval()
    expected.zero_grad()
    nn.functional.cross_entropy(expected(samples.batch(torch.arange(24))[0]), samples.targets, reduction="sum").backward()
    at = 0
    for parameter in expected.parameters():
        own = slice(at, at := at + parameter.numel())
        assert parameter.grad is not None
        held = [i for i in range(own.start, own.stop) if mask[i]]
        gone = sorted(held, key=lambda i: abs(float(trained[i])))[: math.ceil(share * len(held))]
        left = set(held) - set(gone)
        wants = {i: abs(float(parameter.grad.flatten()[i - own.start])) for i in range(own.start, own.stop) if i not in left}
        come = sorted(wants, key=lambda i: -wants[i])[: len(gone)]
        assert {i for i in range(own.start, own.stop) if memory[i]} == left | set(come)
    assert not torch.equal(memory, mask)


def test_clients_may_begin_with_masks_of_their_own() -> None:
    rule, memories = locked(same_mask=False), [torch.zeros(D) for _ in range(3)]
    for memory, seed in zip(memories, (0, 1, 0), strict=True):
        rule.train_benign(client(), tiny_tensors(8), CLASSES, torch.Generator().manual_seed(seed), memory)
    assert torch.equal(memories[0], memories[2])
    assert not torch.equal(memories[0], memories[1])
    assert all(memory.sum() == rule.first_mask.sum() for memory in memories)


def test_a_client_without_samples_keeps_the_model() -> None:
    module, memory = client(), torch.zeros(D)
    before = vector(module).clone()
    assert locked().train_benign(module, tiny_tensors(0), CLASSES, torch.Generator(), memory) == {}
    assert torch.equal(vector(module), before)


# ---- the server ------------------------------------------------------------------------------------------------------


def test_consensus_is_what_enough_clients_hold() -> None:
    rule = Lockdown(theta=0.5)
    rows = torch.tensor([[1.0, 0, 2, 0], [1, 0, 0, 0], [-1, 0, 0, 3], [9, 9, 9, 9]])
    assert torch.equal(rule(rows), FedAvg()(rows))
    assert not len(rule.consensus)  # of which model?
    rule.consensus = torch.ones(4, dtype=torch.bool)
    rule(rows)
    assert rule.consensus.tolist() == [True, False, True, True]
    rule.theta = 0.51
    rule(rows)
    assert rule.consensus.tolist() == [True, False, False, False]
    rule.theta = 0.0
    rule(rows)
    assert rule.consensus.all()
    assert rule.aggregate_buffers(UpdateShard.from_updates(torch.tensor([[0.0], [4.0]]))).tolist() == [2]


def test_predictions_are_of_the_pruned_model_and_the_last_round_prunes_for_good() -> None:
    rule, module = locked(), client().eval()
    rule.consensus = torch.arange(D) % 3 > 0
    pruned = copy.deepcopy(module)
    nn.utils.vector_to_parameters(vector(module) * rule.consensus, pruned.parameters())
    before, inputs = vector(module).clone(), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = rule.predict(module, (inputs, None), torch.Generator())
        assert torch.equal(found, pruned(inputs))
    assert torch.equal(vector(module), before)
    rule.after_step(module, 8)
    assert torch.equal(vector(module), before)
    rule.after_step(module, 9)
    assert torch.equal(vector(module), vector(pruned))


def test_whole_runs_end_pruned() -> None:
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.0)
    rule = Lockdown(rounds=3, batch_size=8, theta=0.5, anneal=0.0)
    federation = tiny_federation(aggregator=rule, attacks=[], cohort=cohort)
    fit(federation, tiny_data(), rounds=3)
    assert not rule.consensus[rule.first_mask == 0].any()
    assert rule.consensus.sum() > 0.8 * rule.first_mask.sum()  # units may be dead
    assert not vector(federation.client)[~rule.consensus].any()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rounds", 0),
        ("density", 0.0),
        ("densities", "even"),
        ("anneal", 1.5),
        ("l1", -1.0),
        ("theta", 20),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", math.inf),
        ("weight_decay", math.nan),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Lockdown\.{setting} must .*, got {value!r}"):
        Lockdown(**{setting: value})
