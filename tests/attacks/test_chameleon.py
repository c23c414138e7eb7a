"""Chameleon: its loss by hand and by loops, its two stages against a plain loop, its company, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from attackers_by_hand import BATCH, COHORT, SEED, equal_data, federation_of, plain_client
from tiny import Relabel, fit, vector
from torch import Tensor, nn

from fl_lightning import AttackersTraining
from fl_lightning.attacks import PGD, Attacker, Broadcast, Chameleon, Collude, ConstrainAndScale, ValueTrigger
from fl_lightning.attacks.chameleon import contrastive_loss
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import MLP
from fl_lightning.seeding import generator

TOLERANCE = 2e-6
"""Of weights of size 1 after two rounds with at most 15 steps in float32, whose rounding is 6e-8."""

SHORT: dict[str, Any] = {"encoder_epochs": 3, "encoder_milestones": [1], "classifier_epochs": 2, "classifier_milestones": [1]}

# ---- the loss --------------------------------------------------------------------------------------------------------

THREE, LABELS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([2, 2, 0])


def test_three_samples_worked_out_by_hand():
    """Similarities 1.2, 0 and 1.6 at T = 1/2: l = log(1 + exp(-1.2)) and log(1 + exp(.4)), and 0 for who is alone."""
    first, second = math.log1p(math.exp(-1.2)), math.log1p(math.exp(0.4))
    assert (first, second) == pytest.approx((0.263282, 0.913015), abs=1e-6)
    found = contrastive_loss(THREE, LABELS, target=2, scale=1.0, temperature=0.5)
    assert found.item() == pytest.approx((first + second) / 3, rel=1e-6) == pytest.approx(0.392099, abs=1e-6)
    assert contrastive_loss(THREE, LABELS, target=2, scale=2.0, temperature=0.5).item() == pytest.approx(0.784198, abs=1e-6)
    assert contrastive_loss(THREE, LABELS, target=0, scale=2.0, temperature=0.5).item() == pytest.approx(0.392099, abs=1e-6)


def by_loops(z: np.ndarray, labels: list[int], target: int, scale: float, temperature: float) -> float:
    total = 0.0
    for i, label in enumerate(labels):
        others = [a for a in range(len(labels)) if a != i]
        positive = [p for p in others if labels[p] == label]
        if not positive:
            continue
        normaliser = math.log(sum(math.exp(z[i] @ z[a] / temperature) for a in others))
        own = sum(z[i] @ z[p] / temperature - normaliser for p in positive) / len(positive)
        total -= (scale if label == target else 1.0) * own
    return total / len(labels)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_its_definition(seed):
    draws = np.random.default_rng(seed)
    z = draws.standard_normal((11, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = draws.integers(0, 4, 11).tolist()
    found = contrastive_loss(torch.from_numpy(z), torch.tensor(labels), target=1, scale=6.0, temperature=0.07)
    assert found.item() == pytest.approx(by_loops(z, labels, 1, 6.0, 0.07), rel=1e-9)


@pytest.mark.parametrize("labels", [[3], [0, 1, 2]], ids=["alone in its batch", "no two alike"])
def test_without_others_of_its_label_a_sample_counts_nothing(labels):
    z = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = contrastive_loss(z, torch.tensor(labels), target=3, scale=6.0, temperature=0.07)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert z.grad.abs().max() == 0


# ---- the stages ------------------------------------------------------------------------------------------------------


def two_rounds_by_hand() -> Tensor:
    """FedAvg with malicious clients that call all of their samples zeros and train in two stages."""
    data, net = equal_data(), plain_client().net
    data.setup("fit")
    encoder, last = [*net[:-1].parameters()], [*net[-1].parameters()]
    weights = [p.detach().clone() for p in net.parameters()]
    for t in range(2):
        cohort = COHORT.draw(SEED, t, data.sizes)
        total = [torch.zeros_like(w) for w in weights]
        for client, malicious in zip(cohort.clients.tolist(), cohort.malicious.tolist(), strict=True):
            with torch.no_grad():
                for p, w in zip(net.parameters(), weights, strict=True):
                    p.copy_(w)
            inputs, targets = data.train.batch(data.clients[client])
            targets = torch.zeros_like(targets) if malicious else targets
            stages = [(list(net.parameters()), 0.1, 0.0, 1)]
            if malicious:
                stages = [(encoder, 0.005, 5e-4, 3), (last, 0.001, 5e-4, 2)]
            draws = generator(SEED, "batches", t, client)
            for number, (parameters, lr, decay, passes) in enumerate(stages):
                optimizer = torch.optim.SGD(parameters, lr, 0.9, weight_decay=decay)
                for epoch in range(passes):
                    if malicious and epoch == 1:
                        optimizer.param_groups[0]["lr"] *= (0.1, 0.005)[number]
                    for rows in torch.randperm(len(targets), generator=draws).split(BATCH):
                        features = net[:-1](inputs[rows])
                        loss = nn.functional.cross_entropy(net[-1](features), targets[rows])
                        if malicious and number == 0:
                            z = features / features.norm(dim=1, keepdim=True)
                            loss = contrastive_loss(z, targets[rows], target=0, scale=6.0, temperature=0.07)
                        net.zero_grad()
                        loss.backward()
                        optimizer.step()
            for sum_, p, w in zip(total, net.parameters(), weights, strict=True):
                sum_ += (w - p.detach()) / len(cohort)
        weights = [w - sum_ for w, sum_ in zip(weights, total, strict=True)]
    return torch.cat([w.flatten() for w in weights])


def test_two_rounds_are_those_of_a_plain_loop():
    federation = federation_of([Relabel(), Chameleon(**SHORT)])
    fit(federation, equal_data(), rounds=2)
    torch.testing.assert_close(vector(federation.client), two_rounds_by_hand(), rtol=TOLERANCE, atol=TOLERANCE)
    others: dict[str, Any] = {"scale": 1.0, "classifier_lr": 0.01}
    for name, other in others.items():
        changed = federation_of([Relabel(), Chameleon(**SHORT | {name: other})])
        fit(changed, equal_data(), rounds=2)
        assert (vector(changed.client) - vector(federation.client)).abs().max() > 10 * TOLERANCE, name


def test_each_stage_holds_what_it_trains():
    module, clean = plain_client(), TensorSamples(torch.zeros(2, 6), torch.tensor([0, 1]))
    sizes = []
    attack = Chameleon(**SHORT)
    for stage in attack.stages(module, clean, Attacker(0, 0, clean)):
        assert stage.optimizer is not None
        sizes.append([tuple(p.shape) for p in stage.optimizer.param_groups[0]["params"]])
        assert bool(module.net[-1]._forward_pre_hooks) == (len(sizes) == 1), "features are taken in the first stage alone"
    assert sizes == [[(37, 6), (37,)], [(3, 37), (3,)]]
    own = torch.zeros(())
    assert attack.loss(module, (torch.zeros(2, 6), torch.tensor([0, 1])), own, Broadcast(torch.empty(0))) is own


@pytest.mark.parametrize(
    "others",
    [[PGD(eps=0.01)], [ConstrainAndScale(gamma=2.0)], [Collude()], [Collude(mode="mean")]],
    ids=["PGD", "ConstrainAndScale", "pool", "mean"],
)
def test_in_company(others):
    federation = federation_of([Relabel(), Chameleon(**SHORT), *others])
    fit(federation, equal_data(), rounds=1)
    assert vector(federation.client).isfinite().all()


def test_pgd_holds_in_both_stages():
    class Far(PGD):
        def constrain(self, module, broadcast, step, steps):
            super().constrain(module, broadcast, step, steps)
            distances.append(float((vector(module) - broadcast.weights).norm()))

    distances: list[float] = []
    federation = federation_of([Relabel(), Chameleon(**SHORT), Far(eps=0.01)])
    fit(federation, equal_data(), rounds=1)
    assert len(distances) % (3 * (3 + 2)) == 0 < len(distances)
    assert max(distances) == pytest.approx(0.01, rel=1e-3)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, r"Chameleon\.scale must be more than 0 and finite, got 0\.0"),
        ({"temperature": math.nan}, r"Chameleon\.temperature must be more than 0 and finite, got nan"),
        ({"encoder_lr": math.inf}, r"Chameleon\.encoder_lr must be more than 0 and finite, got inf"),
        ({"classifier_epochs": -1}, r"Chameleon\.classifier_epochs must be more than 0 and finite, got -1"),
        ({"encoder_decay": 1.5}, r"Chameleon\.encoder_decay must be more than 0 and at most 1, got 1\.5"),
        ({"classifier_milestones": [0]}, r"Chameleon\.classifier_milestones must be whole numbers of passes from 1, got \[0\]"),
        ({"encoder_milestones": [1.5]}, r"Chameleon\.encoder_milestones must be whole .* got \[1\.5\]"),
        ({"encoder_milestones": "24"}, r"Chameleon\.encoder_milestones must be whole .* got '24'"),
        ({"momentum": 1.0}, r"Chameleon\.momentum must lie in \[0, 1\), got 1\.0"),
        ({"weight_decay": -1.0}, r"Chameleon\.weight_decay must be 0 or more, and finite, got -1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Chameleon(**settings)


def trigger() -> ValueTrigger:
    return ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)


def endless() -> Chameleon:
    """With a stage as one's own attack may give it."""
    attack = Chameleon()
    attack.classifier_epochs = 1e6
    return attack


@pytest.mark.parametrize(
    ("attacks", "settings", "message"),
    [
        ([trigger(), ConstrainAndScale(), Chameleon()], {}, r"Chameleon goes down a loss .* ConstrainAndScale .* put it first"),
        ([trigger(), Chameleon(), Chameleon()], {}, r"Chameleon goes down a loss of its own"),
        (
            [trigger(), Chameleon()],
            {"attackers": AttackersTraining(epochs=3)},
            r"Chameleon trains by epochs .* leave these out",
        ),
        ([trigger(), Chameleon(target_label=2)], {}, r"Chameleon\.target_label is 2, but no attack .* \(ValueTrigger 0\)"),
        (
            [trigger(), Chameleon(encoder_epochs=1e-9)],
            {},
            r"stage 1 of Chameleon\.stages .* has 1e-09 epochs; they must be from",
        ),
        ([trigger(), endless()], {}, r"stage 2 of Chameleon\.stages .* has 1000000\.0 epochs"),
        ([trigger(), Chameleon(target_label=7)], {}, r"Chameleon\.target_label must be from 0 to 2"),
        (
            [trigger(), Chameleon(output_layer="net.9")],
            {},
            r"Chameleon looks at the output layer .* but net\.9 is none; .*net\.4",
        ),
        (
            [trigger(), Chameleon(output_layer="net.0")],
            {},
            r"Chameleon\.output_layer is net\.0, but that layer of the client TinyClient is given what no trained tensor has a "
            r"say in, .* name the last linear layer",
        ),
        ([trigger(), Chameleon()], {"client": MLP(sizes=[6, 3])}, r"has 0 trainable tensors before it and 2 in it"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(attacks, settings, message):
    federation = federation_of(attacks, **settings)
    with pytest.raises(ConfigurationError, match=message):
        fit(federation, equal_data(), rounds=1)


def test_a_layer_in_the_middle_has_features_before_it():
    client = plain_client()
    clean = TensorSamples(torch.zeros(2, 6), torch.tensor([0, 1]))
    before = vector(client).clone()
    assert len([*Chameleon(output_layer="net.4").stages(client, clean, Attacker(0, 0, clean))]) == 2
    assert torch.equal(vector(client), before)
    assert client.training
