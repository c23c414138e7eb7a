"""What attacks do to data, to be looked at before a run: pictures on a contact sheet, tables and tweets as text.

Shown are, for every attack, test samples as they are and as ASR is measured on them, then what the first malicious clients
train on in the first round, as far as it is not clean. Pictures are the raw ones with triggers in them, neither augmented nor
normalised. Nothing is trained, so a trigger that is tuned in training is seen as it is before the first round.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker
from fl_lightning.attacks.edge_case import EdgeBatches
from fl_lightning.attacks.poisoning import PoisonedBatches
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.outcomes import Classes, Tokens
from fl_lightning.errors import ConfigurationError

CLEAN = "clean"
SAMPLES = 8
"""How many are shown of each kind."""

CLIENTS = 4
"""How many malicious clients are shown: as many as `DBA` has parts."""

INCHES, DOTS_PER_INCH, COLOURS = 1.0, 100, 256
"""Size of a picture on the sheet, its resolution, and how many colours a sheet has, so that its file stays small."""


@dataclass(frozen=True)
class Example:
    """One sample under attack.

    Attributes:
        before: the clean sample that it was made from, raw; None for an edge case, which is not made from any.
        after: raw, with all triggers.
        true: its class; None where that is not known.
        label: what the attacker says that it is.
    """

    before: Tensor | None
    after: Tensor
    true: int | None
    label: int


@dataclass(frozen=True)
class Strip:
    """Examples of one kind."""

    title: str
    examples: list[Example]


def show(data: FederatedDataModule, attacks: Sequence[Attack], malicious: Sequence[int], seed: int, output: str | None) -> None:
    """Write a contact sheet to `output` (PNG), or attack.png, if the task is one of pictures; else print tables.

    Args:
        data: after its setup.
        attacks: as the federation has them, checked.
        malicious: the numbers of all malicious clients, ascending.
        seed: the experiment's seed.

    Raises:
        ConfigurationError: if no attack changes data, they cannot be shown, the file cannot be written, or there would be none.
    """
    assert data.task is not None
    test = held(data.task.test)
    strips = collect(data, attacks, malicious, seed)
    if not strips:
        raise ConfigurationError(
            f"model.attacks ({', '.join(type(attack).__name__ for attack in attacks) or 'none'}) changes no data, so there is "
            "nothing to show; add an attack that does, such as EdgeCase or DBA"
        )
    classes = getattr(data, "class_names", None) or [str(label) for label in range(data.task.num_classes)]
    if test.inputs.ndim == 4:
        output = "attack.png" if output is None else output
        write_sheet(strips, classes, test.inputs, Path(output))
        print(f"wrote {output}")
        return
    if output is not None:
        raise ConfigurationError(
            f"output = {output}, but {type(data).__name__} has no pictures: what attacks do is printed; leave it out"
        )
    for strip in strips:
        if strip.title != CLEAN or not test.inputs.is_floating_point():  # a table says itself what was there before
            Console(markup=False).print(as_table(strip, classes, test))  # tweets may hold brackets


# ---- what is shown -----------------------------------------------------------------------------------------------------


def collect(data: FederatedDataModule, attacks: Sequence[Attack], malicious: Sequence[int], seed: int) -> list[Strip]:
    """Examples of everything that the attacks change."""
    assert data.task is not None
    test, originals = held(data.task.test), Originals([held(data.task.train), held(data.task.test)])
    strips = []
    for attack in attacks:
        name, source = type(attack).__name__, attack.source_label
        stamped = attack.stamp(test)
        if stamped is None:
            continue
        shown = originals.examples(held(stamped), spread(torch.arange(len(stamped))), source)
        clean = [Example(e.before, e.before, e.true, e.true) for e in shown if e.before is not None and e.true is not None]
        if not clean:  # edge cases are not made from clean samples: show some of their class beside them
            of_class = torch.ones(len(test)) if source is None else test.targets == source
            clean = originals.examples(test, spread(torch.nonzero(of_class).flatten()), source)
        strips += [Strip(CLEAN, clean), Strip(name, shown)]
        for part, samples in attack.stamp_parts(test).items():
            strips.append(
                Strip(f"{name}\n{part}", originals.examples(held(samples), spread(torch.arange(len(samples))), source))
            )
    source = next((attack.source_label for attack in attacks if attack.source_label is not None), None)
    attackers = [Attacker(client, seed, data.train, index) for index, client in enumerate(malicious[:CLIENTS])]
    datasets: list[Samples] = [data.client(attacker.client) for attacker in attackers]
    for attack in attacks:
        datasets = attack.conspire(datasets, attackers)
    for attacker, samples in zip(attackers, datasets, strict=True):
        shown = originals.examples(held(samples), spread(originals.missing(held(samples))), source)
        if not any(alike(shown, strip.examples) for strip in strips):
            strips.append(Strip(f"client {attacker.client}\ntrains on", shown))
    return [strip for strip in strips if strip.examples]


class Originals:
    """The task's clean samples, found again in what an attack made of them."""

    def __init__(self, parts: Sequence[TensorSamples]) -> None:
        self.parts = parts
        self.labels = {key(row): label for part in parts for row, label in zip(part.inputs, labels_of(part), strict=True)}

    def examples(self, samples: TensorSamples, rows: Tensor, source: int | None) -> list[Example]:
        """Those of the samples at `rows` ((m,) int64), of the class `source` where it cannot be found out."""
        samples = samples.subset(rows)
        raw = TensorSamples(samples.inputs, samples.targets, stamps=samples.stamps, outcome=samples.outcome)
        found = []
        for bare, after, label in zip(samples.inputs, raw.batch(torch.arange(len(raw)))[0], labels_of(raw), strict=True):
            before, true = self.origin(bare) or (None, source)
            found.append(Example(before, after, true, label))
        return found

    def origin(self, row: Tensor) -> tuple[Tensor, int] | None:
        """The clean sample and its class: the same one or, in a table, the one that agrees in most features."""
        if key(row) in self.labels:
            return row, self.labels[key(row)]
        if row.ndim > 1 or not row.is_floating_point():
            return None
        agreement, part, best = max(
            (float(agrees.max()), i, int(agrees.argmax()))
            for i, agrees in enumerate((part.inputs == row).float().mean(1) for part in self.parts)
        )
        return (self.parts[part].inputs[best], int(self.parts[part].targets[best])) if agreement >= 0.5 else None

    def missing(self, samples: TensorSamples) -> Tensor:
        """(m,) int64, the samples that are not clean: with a trigger, another class, or inputs of their own."""
        changed = [self.labels.get(key(row)) != label for row, label in zip(samples.inputs, labels_of(samples), strict=True)]
        missing = torch.tensor(changed, dtype=torch.bool)
        for _, carries in samples.stamps:
            missing |= carries
        return torch.nonzero(missing).flatten()


def held(samples: Samples) -> TensorSamples:
    """The samples, if they are held in tensors of a kind that can be shown."""
    samples = samples.both if isinstance(samples, EdgeBatches | PoisonedBatches) else samples
    if not isinstance(samples.outcome, Classes | Tokens):
        raise ConfigurationError(f"show-attack shows classes, but this task asks for {samples.outcome.words}")
    if isinstance(samples, TensorSamples) and samples.inputs.ndim in (2, 4):
        return samples
    found = (
        f"of shape {tuple(samples.inputs.shape)}" if isinstance(samples, TensorSamples) else f"read by {type(samples).__name__}"
    )
    raise ConfigurationError(
        f"show-attack shows pictures (n, C, H, W), tables and texts (n, F) that are held in tensors, but this task's data are "
        f"{found}; load them into TensorSamples"
    )


def labels_of(samples: TensorSamples) -> list[int]:
    """The class of each sample; of tokens, that of the last position."""
    outcome, targets = samples.outcome, samples.targets
    return (outcome.classes(targets) if isinstance(outcome, Tokens) else targets).tolist()


def alike(some: Sequence[Example], others: Sequence[Example]) -> bool:
    """Whether two strips show the same, as those of attackers who share their samples."""
    return len(some) == len(others) and all(
        one.label == other.label and torch.equal(one.after, other.after) for one, other in zip(some, others, strict=True)
    )


def key(row: Tensor) -> int:
    """What tells a sample's inputs from others."""
    return hash(row.numpy().tobytes())


def spread(rows: Tensor) -> Tensor:
    """Up to `SAMPLES` of the rows, evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).round().long()]


def caption(example: Example, classes: Sequence[str]) -> tuple[str, str]:
    """The true class, and the label if it is another."""
    return (
        "?" if example.true is None else classes[example.true],
        "" if example.true == example.label else f"-> {classes[example.label]}",
    )


# ---- how it is shown ---------------------------------------------------------------------------------------------------


def write_sheet(strips: Sequence[Strip], classes: Sequence[str], scale: Tensor, output: Path) -> None:
    """A contact sheet with a row of pictures per strip; `scale` holds pictures (n, C, H, W) from black to white."""
    from matplotlib.figure import Figure  # here, as most commands do not need it and it is slow to import

    low, high = (0.0, 255.0) if scale.dtype == torch.uint8 else (float(bound) for bound in scale.aminmax())
    size = (SAMPLES + 1) * INCHES, len(strips) * 1.4 * INCHES
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(strips), SAMPLES, squeeze=False)
    for strip, cells in zip(strips, grid, strict=True):
        for i, cell in enumerate(cells):
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(linewidth=0.5, color="grey", visible=i < len(strip.examples))  # the edge of a white picture
        cells[0].set_ylabel(strip.title, rotation=0, ha="right", va="center", fontsize=8)
        for cell, example in zip(cells, strip.examples, strict=False):
            picture = example.after if len(example.after) == 3 else example.after[:1]  # all channels of a colour picture
            picture = ((picture.float() - low) / (high - low)).clamp(0, 1).permute(1, 2, 0)
            cell.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
            cell.set_title("\n".join(caption(example, classes)), fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        Image.open(stream).convert("RGB").quantize(COLOURS).save(output, format="png", optimize=True)
    except OSError as error:
        raise ConfigurationError(f"output {output} cannot be written: {error}; give another file") from error


def as_table(strip: Strip, classes: Sequence[str], test: TensorSamples) -> Table:
    """What changed in each example: features of a table, or the whole of a text."""
    is_text = not test.inputs.is_floating_point()
    table = Table("text" if is_text else "changed features", "class", title=strip.title.replace("\n", " "))
    for example in strip.examples:
        change = as_text(example.after, test) if is_text else changed_features(example, test.feature_names)
        table.add_row(change, " ".join(caption(example, classes)))
    return table


def changed_features(example: Example, names: Sequence[str] | None) -> str:
    """A line for each feature with its values before and after."""
    if example.before is None:
        return "all: not made from a sample of the task"
    changed = torch.nonzero(example.before != example.after).flatten().tolist()
    lines = [f"{names[i] if names else i}: {example.before[i]:.4g} -> {example.after[i]:.4g}" for i in changed]
    return "\n".join(lines) or "none"


def as_text(row: Tensor, test: TensorSamples) -> str:
    """Words, if the task's `prepare` has a `vocabulary` (the word of each number), else numbers."""
    words = getattr(test.prepare, "vocabulary", None)
    return " ".join(str(number) if words is None else words[number] for number in row.tolist()).strip()
