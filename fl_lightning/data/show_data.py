"""How a partition dealt the training samples out, to be looked at before a run: a table on the screen and a picture in a file.

Up to `MOST_SHOWN` clients are drawn one by one, as columns of a heat map below their numbers of samples. More are drawn
as quantiles over clients. Nothing is trained, and no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.skew import Skew
from fl_lightning.errors import ConfigurationError, enumerated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")

MOST_SHOWN = 150
"""Clients that are drawn one by one; the columns of more would be too narrow to be seen."""

MOST_NAMED = 40
"""Classes that are named beside the heat map."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STEPS = 200
"""Points of a curve over clients."""

INK, BAND = "#1f6fb4", "#9cc3e4"


def show(data: FederatedDataModule, output: str) -> None:
    """Print the table, and write the picture.

    Args:
        data: after its setup.
        output: a file that ends in .svg or .png.

    Raises:
        ConfigurationError: it cannot be written.
    """
    assert data.task is not None, "setup() has not run"
    check_format(output)
    skew = Skew.of(data.clients, data.train.targets, data.task.num_classes)
    names = list(data.class_names) or [str(label) for label in range(data.task.num_classes)]
    Console(markup=False).print(as_table(skew, len(data.train), names))
    title = f"{type(data).__name__}, {type(data.partition).__name__}: {len(data.clients):,} clients"
    write(draw(skew, names, title), output)
    print(f"wrote {output}")


def check_format(output: str) -> None:
    """Raise `ConfigurationError` unless the file's name says how it is to be drawn."""
    if Path(output).suffix.lower() not in FORMATS:
        raise ConfigurationError(f"output = {output} must end in {' or '.join(FORMATS)}, which says how it is drawn")


# ---- the table ---------------------------------------------------------------------------------------------------------


def as_table(skew: Skew, num_samples: int, names: Sequence[str]) -> Table:
    """Numbers of clients, samples and classes.

    Args:
        skew: what the partition made.
        num_samples: n, all training samples that could be dealt out.
        names: of the classes.
    """
    table = Table("", "", "least", "median", "most", title="How samples are dealt out", show_header=True)
    table.add_row("clients", f"{len(skew.sizes):,}")
    table.add_row("clients without samples", f"{int((skew.sizes == 0).sum()):,}")
    table.add_row("training samples", f"{num_samples:,}")
    table.add_row("samples per client", "", *spread(skew.sizes))
    if skew.counts is None:
        table.add_row("classes", "none")
        return table
    table.add_row("classes", f"{len(names):,}")
    missing = skew.missing
    table.add_row("classes that nobody has", f"{len(missing)}: {enumerated([names[i] for i in missing])}" if missing else "0")
    table.add_row("classes that a client lacks", "", *spread(skew.lacking))
    table.add_row("effective classes per client", "", *spread(skew.effective_classes))
    return table


def spread(values: Tensor) -> list[str]:
    """The least, the median (the lower of two in the middle) and the most."""
    if not len(values):
        return ["-"] * 3
    shown = [float(values.min()), float(values.median()), float(values.max())]
    return [f"{value:.2f}" if values.is_floating_point() else f"{value:,.0f}" for value in shown]


# ---- the picture -------------------------------------------------------------------------------------------------------


def draw(skew: Skew, names: Sequence[str], title: str) -> Figure:
    """Sizes above, classes below: client by client, or over clients where they are many.

    Args:
        skew: what the partition made.
        names: of the classes, where there are some.
        title: above the picture.
    """
    from matplotlib.figure import Figure  # here, as most commands do not need it and it is slow to import

    few = len(skew.sizes) <= MOST_SHOWN
    rows = 0 if skew.counts is None else max(10, min(32, skew.counts.shape[1]))
    height = 2.2 if skew.counts is None else 2.4 + 0.16 * rows if few else 5.0
    figure = Figure(figsize=(8.0, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    if skew.counts is None:
        sizes = figure.add_subplot()
        draw_bars(sizes, skew.sizes) if few else draw_curve(sizes, skew.sizes, "samples")
    elif few:
        sizes, classes = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, height - 1.6])
        draw_bars(sizes, skew.sizes)
        sizes.set_xlabel("")
        draw_shares(classes, skew, names, figure)
    else:
        parts = figure.subplot_mosaic([["sizes", "effective"], ["classes", "classes"]])
        draw_curve(parts["sizes"], skew.sizes, "samples")
        draw_curve(parts["effective"], skew.effective_classes, "effective classes")
        draw_bands(parts["classes"], skew, names)
    return figure


def draw_bars(axes: Axes, sizes: Tensor) -> None:
    """A bar per client."""
    from matplotlib.ticker import MaxNLocator

    axes.bar(range(len(sizes)), sizes.numpy(), width=0.8, color=INK)
    axes.set(xlabel="client", ylabel="samples", xlim=(-0.5, len(sizes) - 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_curve(axes: Axes, values: Tensor, what: str) -> None:
    """A value over the share of clients that have no more; on a logarithmic scale where the largest outweigh all others."""
    shares = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    ordered = values.double().sort().values
    at = ordered[(shares * (len(ordered) - 1)).round().long()]
    axes.plot(100 * shares, at, color=INK)
    if ordered[0] > 0 and ordered[-1] > 20 * ordered[len(ordered) // 2]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="% of clients with no more", ylabel=what, xlim=(0, 100))


def draw_shares(axes: Axes, skew: Skew, names: Sequence[str], figure: Figure) -> None:
    """A row per class and a column per client, dark where the class fills the client's samples."""
    assert skew.counts is not None
    image = axes.imshow(class_shares(skew).T.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axes.set(xlabel="client", ylabel="class")
    if len(names) <= MOST_NAMED:
        axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the client's samples", pad=0.01)


def draw_bands(axes: Axes, skew: Skew, names: Sequence[str]) -> None:
    """For each class the share that it has of a client's samples: the median, and where 50% and 90% of clients are."""
    assert skew.counts is not None
    shares = class_shares(skew)
    ordered = shares[skew.sizes > 0].sort(0).values
    low, lower, median, upper, high = (ordered[round(q * (len(ordered) - 1))].numpy() for q in QUANTILES)
    place = range(len(median))
    axes.vlines(place, low, high, color=BAND, linewidth=2, label="90% of clients")
    axes.vlines(place, lower, upper, color=INK, linewidth=4, label="50%")
    axes.plot(place, median, "_", color="black", markersize=8, label="median")
    together = skew.counts.sum(0) / skew.counts.sum()
    axes.plot(place, together, "x", color="black", markersize=4, label="all clients together")
    axes.set(xlabel="class", ylabel="share of a client", ylim=(0, None))
    if len(names) <= MOST_NAMED:
        axes.set_xticks(list(place), names, fontsize=7, rotation=90 if sum(map(len, names)) > 80 else 0)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def class_shares(skew: Skew) -> Tensor:
    """(N, C) float32, each class's share of a client's samples; zeros where it has none."""
    assert skew.counts is not None
    return skew.counts.float() / skew.sizes.clamp(min=1)[:, None]


def write(figure: Figure, output: str) -> None:
    """Write the picture as its file's name says, the same bytes for the same data."""
    from matplotlib import rc_context

    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": "fl_lightning", "svg.fonttype": "none"}):
            if Path(output).suffix.lower() == ".svg":
                figure.savefig(output, format="svg", metadata={"Date": None})
            else:
                figure.savefig(output, format="png", dpi=150)
    except OSError as error:
        raise ConfigurationError(f"output {output} cannot be written: {error}; give another file") from error
