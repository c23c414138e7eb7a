"""The commands that look at a model: after a short training of their own, or at a checkpoint."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from fl_lightning.analysis import flatness as flat
from fl_lightning.analysis import loss_landscape, mimicry
from fl_lightning.analysis import separability as hulls
from fl_lightning.analysis.output import Output
from fl_lightning.analysis.world import WarmUp, World, settings
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def figure4(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    rounds: int = 10,
    ckpt_path: str | None = None,
    attacked: bool = False,
    shares: list[float] = [0.0, 0.15, 0.3],  # noqa: B006  likewise
    reach: float = 4.0,
    points: int = 33,
    clients: int = 20,
    filter_normalise: bool = False,
    output: str = "runs/analysis/figure4",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """Figure 4: losses along the malicious and a random direction, for shares of edge cases among benign data.

    Args:
        config: a configuration with the EdgeCase attack.
        rounds: of training before the look, at least 1 for a minimum worth the name.
        ckpt_path: a checkpoint to look at in place of training, the same for all shares.
        attacked: whether attackers attack in these rounds.
        shares: p, the values of EdgeCase.shared_fraction.
        reach: s goes from -reach/4 to reach, in lengths of the malicious update.
        points: of a curve, at least 3.
        clients: malicious clients whose mean update is the direction, at most.
        filter_normalise: give every filter of both directions the norm of the weights' filter.
        output: folder for figure4.csv, figure4.json, figure4.png and the trained models.
        overrides: further options of `fit`.
    """
    if points < 3 or not reach > 0:
        raise ConfigurationError(f"points must be at least 3 and reach more than 0, got {points} and {reach}")
    warm_up = WarmUp(rounds, ckpt_path, attacked)
    resolved = settings(config, overrides)
    edge_case = the_edge_case(resolved)
    out = Output(output)
    steps = np.unique(np.append(np.linspace(-reach / 4, reach, points), 0.0))
    rows, found = [], []
    for share in shares:
        edge_case["shared_fraction"] = share
        world = warm_up.prepare(deepcopy(resolved), out.folder / f"p{round(100 * share):02d}")
        for curve in landscape(world, steps, clients, filter_normalise):
            found.append((share, curve))
            start = int(np.abs(curve.distance).argmin())
            half = int(np.abs(curve.distance - curve.distance.max() / 2).argmin())
            rows.append(
                {
                    "p": share,
                    "direction": curve.direction,
                    "||u||": float(curve.distance.max() / reach),
                    "benign loss": float(curve.benign[start]),
                    "half": float(curve.benign[half]),
                    "end": float(curve.benign[-1]),
                    "backdoor loss": float(curve.backdoor[start]),
                    "end ": float(curve.backdoor[-1]),
                }
            )
    out.table("Figure 4: losses at the weights, half way and at the end of each direction", rows, "figure4")
    out.numbers("figure4", [{"p": share, **asdict(curve)} for share, curve in found])
    with out.figure("figure4", panels=2) as axes:
        for i, (share, curve) in enumerate(found):
            style = {"color": f"C{i // 2}", "linestyle": "-" if curve.direction == "malicious" else "--"}
            axes[0].plot(curve.distance, curve.benign, label=f"p = {share:.0%}, {curve.direction}", **style)
            axes[1].plot(curve.distance, curve.backdoor, **style)
        axes[0].set(xlabel="distance s ||u||", ylabel="benign loss")
        axes[1].set(xlabel="distance s ||u||", ylabel="backdoor loss, target label")
        axes[0].legend(fontsize=7)
    out.close()


def the_edge_case(resolved: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the configuration's EdgeCase attack."""
    for attack in resolved["model"]["attacks"]:
        if attack["class_path"].rpartition(".")[2] == "EdgeCase":
            return attack["init_args"]
    named = [attack["class_path"].rpartition(".")[2] for attack in resolved["model"]["attacks"]]
    raise ConfigurationError(
        f"Figure 4 shares edge cases with benign clients, but model.attacks is {named}; use a configuration with EdgeCase, "
        "such as configs/digits/edge_case.yaml"
    )


def landscape(world: World, steps: np.ndarray, clients: int, filter_normalise: bool) -> list[loss_landscape.Curve]:
    """The curves along the mean malicious update and along a random direction of its norm."""
    weights, data = world.weights, world.samples(world.benign)
    malicious = world.updates(some(world.malicious, clients, "clients", 1), malicious=True).mean(0)
    random = loss_landscape.random_direction(malicious, generator(world.federation.seed, "analysis: random direction"))
    if filter_normalise:
        shapes = [p.shape for p in world.federation.client.parameters() if p.requires_grad]
        malicious, random = (loss_landscape.filter_normalised(u, weights, shapes) for u in (malicious, random))
    stamped = world.stamped
    return [
        loss_landscape.curve(name, weights, u, steps, lambda w: world.loss(data, w), lambda w: world.loss(stamped, w))
        for name, u in (("malicious", malicious), ("random", random))
    ]


def some(clients: list[int], most: int, name: str, least: int) -> list[int]:
    """The first of the clients."""
    if most < least:
        raise ConfigurationError(f"{name} must be at least {least}, got {most}")
    return clients[:most]


def figure5(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    rounds: int = 10,
    ckpt_path: str | None = None,
    attacked: bool = False,
    counts: list[int] = [100, 1000, 10_000, 100_000],  # noqa: B006  likewise
    output: str = "runs/analysis/figure5",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """Figure 5 and Appendix D.2: the malicious update's magnitudes, and what of it is left when it mimics a benign one.

    Args:
        config: a configuration with an attack that stamps the test set.
        rounds: of training before the look; 0 for the initial weights.
        ckpt_path: a checkpoint to look at in place of training.
        attacked: whether attackers attack in these rounds.
        counts: how many coordinates stay malicious; cut off at d.
        output: folder for figure5.csv, figure5.json and figure5.png.
        overrides: further options of `fit`.
    """
    if not counts or min(counts) < 0:
        raise ConfigurationError(f"counts must be numbers of coordinates of at least 0, got {counts}")
    world, out = one_world(config, rounds, ckpt_path, attacked, output, overrides)
    malicious = world.updates(world.malicious[:1], malicious=True)[0]
    benign = world.updates(world.malicious[:1])[0]  # the same client, had it trained honestly
    histogram = mimicry.magnitudes(malicious)
    stamped = world.stamped
    found = mimicry.mimicry(malicious, benign, lambda w: world.loss(stamped, w), world.weights, counts)
    print(
        f"{histogram.large:,} of {histogram.total:,} entries of the malicious update exceed {mimicry.LARGE} "
        f"({histogram.large / histogram.total:.2%}); {histogram.zeros:,} are exactly zero."
    )
    rows = [
        {
            "kept": entry.kept,
            "cos(g, g~)": entry.cosine,
            "slow-down": entry.slow_down,
            "loss before": entry.loss_before,
            "after g'": entry.loss_full,
            "after g~": entry.loss_mimic,
        }
        for entry in found
    ]
    out.table(f"Mimicry; cos(g, g') = {mimicry.cosine(benign, malicious):.4f}", rows, "figure5")
    out.numbers("figure5", {"magnitudes": histogram, "mimicry": [asdict(entry) for entry in found], "figures": world.figures})
    with out.figure("figure5") as [axis]:
        axis.stairs(histogram.counts, histogram.edges, fill=True, alpha=0.7)
        axis.axvline(mimicry.LARGE, color="black", linestyle=":", label=f"{mimicry.LARGE}: {histogram.large:,} above")
        axis.set(xscale="log", yscale="symlog", xlabel="|entry| of the malicious update", ylabel="entries")
        axis.legend()
    out.close()


def separability(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    rounds: int = 10,
    ckpt_path: str | None = None,
    attacked: bool = False,
    clients: int = 5,
    output: str = "runs/analysis/separability",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """Appendix D.3: how far a malicious model lies from the convex hull of benign ones, beside benign ones themselves.

    Args:
        config: a configuration with an attack that poisons data.
        rounds: of training before the models part; 0 for the initial weights.
        ckpt_path: a checkpoint to start from in place of training.
        attacked: whether attackers attack in these rounds.
        clients: benign clients, at least 3.
        output: folder for separability.csv and separability.json.
        overrides: further options of `fit`.
    """
    world, out = one_world(config, rounds, ckpt_path, attacked, output, overrides)
    chosen = some(world.benign, clients, "clients", 3)
    benign, attacker = world.updates(chosen), world.malicious[0]
    malicious = world.updates([attacker], malicious=True)[0]
    found = hulls.separability(benign, malicious)
    names = [f"malicious, client {attacker}", *(f"benign, client {client}" for client in chosen)]
    rows = [
        {"model": name, "distance": hull.distance, "diameter": hull.diameter, "distance / diameter": hull.ratio}
        for name, hull in zip(names, [found.malicious, *found.controls], strict=True)
    ]
    out.table("Distance to the hull of the (other) benign models", rows, "separability")
    print(
        "The malicious model is farther out than every benign one."
        if found.informative
        else "The malicious model is no farther out than some benign one: being outside the hull says nothing here."
    )
    nearest = torch.as_tensor(found.malicious.weights, dtype=benign.dtype, device=benign.device) @ benign
    out.numbers(
        "separability",
        {
            **asdict(found),
            "informative": found.informative,
            "cosine_of_separating_direction_and_malicious_update": mimicry.cosine(malicious - nearest, malicious),
            "figures": world.figures,
        },
    )
    out.close()


def flatness(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    rounds: int = 10,
    ckpt_path: str | None = None,
    attacked: bool = False,
    clients: int = 16,
    output: str = "runs/analysis/flatness",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """Definition 4 by a proxy: gradient norms and flip rates of benign clients, layer by layer.

    Args:
        config: a configuration with an attack that poisons data.
        rounds: of training before the look; 0 for the initial weights.
        ckpt_path: a checkpoint to look at in place of training.
        attacked: whether attackers attack in these rounds.
        clients: benign clients, at least 2.
        output: folder for flatness.csv, flatness.json and flatness.png.
        overrides: further options of `fit`.
    """
    world, out = one_world(config, rounds, ckpt_path, attacked, output, overrides)
    chosen = some(world.benign, clients, "clients", 2)
    layout = world.federation.parameters_layout
    gradients = torch.stack([world.gradient(world.samples([client])) for client in chosen])
    poisoned = world.gradient(world.samples(world.malicious[:1], poisoned=True))
    found = flat.flatness(gradients, world.updates(chosen), poisoned, layout.names, layout.sizes)
    rows = [asdict(layer) for layer in found.layers]
    out.table(f"Gradient norms and flip rates of {len(chosen)} benign clients", rows, "flatness")
    print(f"Mean flip rate {found.flips.rate:.4f}; {found.flips.zeros:,} coordinates with an exact zero.")
    out.numbers("flatness", {**asdict(found), "figures": world.figures})
    with out.figure("flatness", panels=2) as axes:
        places = np.arange(len(rows))
        for name, shift in (("benign", -0.2), ("malicious", 0.2)):
            axes[0].bar(places + shift, [row[name] for row in rows], width=0.4, label=name)
        axes[0].set(yscale="log", ylabel="norm of the full-batch gradient", xticks=places)
        axes[0].set_xticklabels([row["name"] for row in rows], rotation=60, ha="right", fontsize=6)
        axes[0].legend()
        shares = np.arange(found.flips.benign + 1) / found.flips.benign
        axes[1].bar(shares, np.array(found.flips.counts) / layout.num_coordinates, width=0.8 / found.flips.benign)
        axes[1].set(xlabel="share of benign clients that flip", ylabel="share of coordinates")
    out.close()


def one_world(
    config: list[str], rounds: int, ckpt_path: str | None, attacked: bool, output: str, overrides: list[str]
) -> tuple[World, Output]:
    """The federation under analysis, and where the results go; its own files go into the folder `run` there."""
    warm_up = WarmUp(rounds, ckpt_path, attacked)
    resolved = settings(config, overrides)
    out = Output(output)
    return warm_up.prepare(resolved, out.folder / "run"), out
