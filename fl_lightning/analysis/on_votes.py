"""The command that certifies what noised copies of a model vote for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.aggregators import CRFL
from fl_lightning.aggregators.crfl import count_votes
from fl_lightning.analysis.crfl import Threat, contraction, logistic_smoothness, radius, vote_bounds
from fl_lightning.analysis.output import Output
from fl_lightning.analysis.world import WarmUp, World, settings
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator
from fl_lightning.training.optimizers import read_optimizers

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of the longest radius, at which the table says how many samples are certified."""


def crfl(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    rounds: int = 10,
    ckpt_path: str | None = None,
    attacked: bool = True,
    alpha: float = 0.001,
    scale: float = 1.0,
    attack_round: int | None = None,
    learning_rate: float | None = None,
    poisoned: float | None = None,
    smoothness: float | None = None,
    output: str = "runs/analysis/crfl",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """CRFL's certificate: how far one round's attackers may move poisoned samples before they change a prediction.

    Args:
        config: a configuration with the rule CRFL.
        rounds: of training before the look, at least 1.
        ckpt_path: a checkpoint to look at in place of training.
        attacked: whether attackers attack in these rounds.
        alpha: how often each bound of a vote may fail, in (0, 1).
        scale: gamma, by which attackers multiply their updates.
        attack_round: the one round, from 1, in which they attack; left out, the last one, after which nothing heals.
        learning_rate: of their SGD; left out, that of the client's optimizer.
        poisoned: the share of their batches that is poisoned; left out, what the attacks' poison_fraction says, or all.
        smoothness: L_z; left out, that of logistic regression at this rule's norms, for inputs as long as the longest.
        output: folder for crfl.csv, crfl.json and crfl.png.
        overrides: further options of `fit`.
    """
    warm_up, resolved = WarmUp(rounds, ckpt_path, attacked), settings(config, overrides)
    name = resolved["model"]["aggregator"]["class_path"].rpartition(".")[2]
    if name != "CRFL":
        raise ConfigurationError(f"the certificate is CRFL's, but model.aggregator is {name}; train with CRFL")
    out = Output(output)
    world = warm_up.prepare(resolved, out.folder / "run")
    federation = world.federation
    rule, done = federation.aggregator, max(1, federation.rounds_done)
    assert isinstance(rule, CRFL), "its name says so"
    at = done if attack_round is None else attack_round
    if not 1 <= at <= done:
        raise ConfigurationError(f"attack_round must lie between 1 and the {done} rounds of the model, got {at}")
    bounds = [rule.norm_bound(t) for t in range(at, done)]  # of rounds at + 1 .. done, counted from 1
    noises = [*[rule.sigma] * (done - at - 1), rule.sigma_test][: len(bounds)]
    longest, lengths = max(rule.norm_bound(t) for t in range(done)), input_norm(world)
    optimizer, _ = read_optimizers(federation.client.configure_optimizers())
    groups = optimizer.param_groups
    fractions = [getattr(attack, "poison_fraction", 1.0) for attack in federation.attacks]
    threat = Threat(
        attackers=max(1, federation.cohort.malicious_per_round),
        share=largest_share(world, rule.weighted),
        scale=scale,
        poisoned=max(fractions, default=1.0) if poisoned is None else poisoned,
        steps=federation.local.num_steps(int(federation.data.sizes.max())),
        learning_rate=max(group["lr"] for group in groups) if learning_rate is None else learning_rate,
        smoothness=logistic_smoothness(longest, lengths) if smoothness is None else smoothness,
    )
    votes, targets = votes_of(world, rule), federation.data.evaluation["clean"].targets.cpu()
    first, second = vote_bounds(votes, rule.copies, alpha)
    of_attack = rule.sigma if at < done else rule.sigma_test  # what blurs the attacked round's model
    radii = radius(first, second, threat, of_attack, contraction(bounds, noises))
    right = votes.argmax(1) == targets
    top = float(radii[radii.isfinite()].max()) if radii.isfinite().any() else 0.0
    rows = [
        {
            "radius": share * top,
            "certified rate": float((certain := radii >= max(share * top, np.nextafter(0, 1))).double().mean()),
            "certified accuracy": float((certain & right).double().mean()),
        }
        for share in SHARES
    ]
    out.table(f"{len(radii):,} test samples, {rule.copies:,} copies, {done} rounds", rows, "crfl")
    print(threat)
    for line in (remarks := doubts(federation.client, optimizer, smoothness is None, lengths)):
        print(line)
    everything = {"p_a": first, "p_b": second, "radius": radii, "right": right}
    samples = {name: values.tolist() for name, values in everything.items()}
    out.numbers("crfl", {"threat": asdict(threat), "doubts": remarks, "figures": world.figures, **samples})
    with out.figure("crfl") as [axis]:
        grid = np.linspace(0, top, 200)
        axis.plot(grid, [float((radii >= r).double().mean()) for r in grid], label="certified rate")
        axis.plot(grid, [float(((radii >= r) & right).double().mean()) for r in grid], label="certified accuracy")
        axis.set(xlabel="radius", ylim=(0, 1.02))
        axis.legend()
    out.close()


def votes_of(world: World, rule: CRFL) -> Tensor:
    """(n, C) int64 on the CPU, the votes on the clean test set."""
    federation = world.federation
    test, module = federation.data.evaluation["clean"], federation.client.eval()
    found = []
    for number, indices in enumerate(torch.arange(len(test)).split(federation.data.eval_batch_size)):
        batch = move_data_to_device(test.batch(indices), next(module.parameters()).device)
        draws = generator(federation.seed, "analysis: votes", number)
        found.append(count_votes(module, batch, rule.copies, rule.sigma_test, draws).cpu())
    return torch.cat(found)


def input_norm(world: World) -> float:
    """The norm of the longest training input, as the model sees it."""
    train, longest = world.federation.data.train, 0.0
    for indices in torch.arange(len(train)).split(world.federation.data.eval_batch_size):
        inputs = train.batch(indices)[0]
        longest = max(longest, float(inputs.flatten(1).double().norm(dim=1).max()))
    return longest


def largest_share(world: World, weighted: bool) -> float:
    """What the largest client weighs in a mean with the smallest ones; 1/N where all are alike."""
    n, sizes = world.federation.cohort.clients_per_round, world.federation.data.sizes.double().sort().values
    return float(sizes[-1] / (sizes[-1] + sizes[: n - 1].sum())) if weighted else 1 / n


def doubts(client: Any, optimizer: torch.optim.Optimizer, assumed: bool, lengths: float) -> list[str]:
    """Where a run is none that the theorem is about."""
    shapes = [tuple(parameter.shape) for parameter in client.parameters()]
    found = []
    if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        found.append(
            "No certificate: it is proven for one linear layer, and the model has others. The votes are what they are."
        )
    elif assumed and lengths > 1:
        found.append(f"Holds if poisoned inputs are no longer than {lengths:.4g}, as training inputs are.")
    if type(optimizer) is not torch.optim.SGD or any(group.get("momentum") for group in optimizer.param_groups):
        found.append("No certificate: it is proven for clients' plain SGD without momentum.")
    return found
