"""What is drawn for a paper: the numbers, and whether a reader can tell them apart."""

import itertools
import math
import re

import numpy as np
import pytest
from made_sweeps import made
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from fl_lightning.experiments.figures import same_bytes
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.groups import groups
from fl_lightning.experiments.league import boards
from fl_lightning.experiments.paper_figures import PALETTE, bars, heat_map, luminance, overlay, shortened, style
from fl_lightning.experiments.pictures import file_name, latex_figures, pdf, pictures
from fl_lightning.experiments.run_folder import State


def curve(acc: float, asr: float, rounds: int = 12) -> list[tuple[float, float]]:
    return [(acc * t / rounds, asr * t / rounds) for t in range(1, rounds + 1)]


@pytest.fixture
def results(tmp_path):
    """Two rules and two attacks: one cell with a failed run, one that was not run at all."""
    return made(
        tmp_path,
        {
            ("FedAvg", "DBA"): [curve(0.8, 0.6), curve(0.6, 0.2)],
            ("FedAvg", "none"): [curve(0.9, 0.1), State.FAILED],
            ("Krum", "DBA"): [curve(0.7, 0.4, rounds=6), curve(0.5, 0.4, rounds=6)],
            ("Krum", "none"): [State.PENDING, State.PENDING],
        },
        title="50% of a_b",
    )


def test_lines_are_means_over_seeds_and_bands_reach_from_the_smallest_to_the_largest(results):
    figure = overlay(results, groups(results, two_axes=False)[0])
    acc, asr = figure.axes
    assert (acc.get_title(), asr.get_title()) == ("Acc", "ASR")
    for panel, values in ((acc, (0.8, 0.6, 0.7, 0.5)), (asr, (0.6, 0.2, 0.4, 0.4))):
        first, second = panel.lines
        rounds = np.arange(1, 13)
        assert np.array_equal(np.asarray(first.get_xdata()), rounds)
        np.testing.assert_allclose(np.asarray(first.get_ydata()), (values[0] + values[1]) / 2 * rounds / 12, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(second.get_ydata()), (values[2] + values[3]) / 2 * rounds[:6] / 6, rtol=1e-12)
        band = np.asarray(panel.collections[0].get_paths()[0].vertices)
        at_the_end = band[band[:, 0] == 12][:, 1]
        np.testing.assert_allclose((at_the_end.min(), at_the_end.max()), sorted(values[:2]), rtol=1e-12)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg", "Krum"]


def test_a_rule_without_evaluations_stands_in_the_legend_alone(results):
    figure = overlay(results, groups(results, two_axes=False)[1])
    assert [len(panel.lines) for panel in figure.axes] == [1, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg", "Krum (no evaluation)"]
    assert figure.axes[0].lines[0].get_color() == style(0)["color"]


@pytest.mark.parametrize("rules", [1, 2, 12])
def test_every_number_of_rules_is_legible(tmp_path, rules):
    names = [f"TrimmedMean with a name, {place}" for place in range(rules)]
    results = made(tmp_path, {(name, "DBA"): [curve(0.9, place / 12)] for place, name in enumerate(names)})
    (group,) = groups(results, two_axes=False)
    assert len(group.cells) == rules
    figure = overlay(results, group)
    FigureCanvasAgg(figure).draw()
    inside = figure.bbox
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    for text in legend.get_texts():
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
    for panel in figure.axes:
        box = panel.get_tightbbox()
        assert box is not None
        assert not box.overlaps(legend.get_window_extent())
        assert panel.get_window_extent().height > 0.4 * inside.height
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == rules
    barred = bars(results, group, Final.LAST)
    FigureCanvasAgg(barred).draw()
    boxes = [label.get_window_extent() for label in barred.axes[0].get_yticklabels()]
    assert len(boxes) == rules
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(barred.bbox.x0 <= box.x0 for box in boxes)


def test_styles_are_told_apart_without_colours_and_by_the_colour_blind():
    looks = [style(index) for index in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    assert len({(look["linestyle"], look["marker"]) for look in looks[:20]}) == 20
    for matrix in COLOUR_BLINDNESS.values():
        seen = [np.clip(matrix @ linear(color), 0, 1) for color in PALETTE]
        for one, other in itertools.combinations(seen, 2):
            assert np.linalg.norm(lab(one) - lab(other)) > 10  # 2.3 is what a good eye just notices


COLOUR_BLINDNESS = {  # of linear RGB, complete: Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, Table 1
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
}


def linear(color: str) -> np.ndarray:
    """Linear RGB of a colour."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, white point D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ rgb / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def widths(panel: Axes) -> list[float]:
    return [bar.get_width() for bar in panel.patches if isinstance(bar, Rectangle)]


def test_bars_are_means_at_the_end_with_sample_deviations(results):
    figure = bars(results, groups(results, two_axes=False)[0], Final.LAST)
    acc, asr = figure.axes
    np.testing.assert_allclose(widths(acc), [0.7, 0.6], rtol=1e-12)
    np.testing.assert_allclose(widths(asr), [0.4, 0.4], rtol=1e-12)
    assert [text.get_text() for text in acc.get_yticklabels()] == ["FedAvg", "Krum"]
    error = asr.collections[0]
    assert isinstance(error, LineCollection)
    (low, _), (high, _) = error.get_segments()[0]
    assert (high - low) / 2 == pytest.approx(math.sqrt(((0.6 - 0.4) ** 2 + (0.2 - 0.4) ** 2) / (2 - 1)))
    assert low + high == pytest.approx(0.8)
    averaged = bars(results, groups(results, two_axes=False)[0], Final.MEAN)
    mean = np.mean([0.7 * t / 12 for t in range(3, 13)])  # of the last ten rounds of twelve
    assert widths(averaged.axes[0])[0] == pytest.approx(mean)


def test_where_there_is_no_bar_it_says_why(results):
    figure = bars(results, groups(results, two_axes=False)[1], Final.LAST)
    assert len(figure.axes[0].patches) == 1
    assert [text.get_text() for text in figure.axes[0].texts] == ["not run"]
    assert not figure.axes[0].collections  # one seed has no deviation


def test_heat_maps_have_every_value_in_its_cell(results):
    (group,) = groups(results, two_axes=True)
    axes = heat_map(results, group, "asr", Final.LAST).axes[0]
    (mesh,) = [found for found in axes.collections if isinstance(found, QuadMesh)]
    values = np.ma.asarray(mesh.get_array())
    np.testing.assert_allclose(values.filled(-1), [[0.4, 0.1], [0.4, -1]], rtol=1e-12)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0.5, 0.5): ".400", (1.5, 0.5): ".100", (0.5, 1.5): ".400", (1.5, 1.5): "\u2013"}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["DBA", "none"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["FedAvg", "Krum"]
    assert axes.yaxis_inverted()  # the first rule stands above


def test_values_are_readable_on_every_shade(tmp_path):
    cells = {(f"{row}", f"{column}"): [curve(0.5, (10 * row + column) / 100)] for row in range(10) for column in range(10)}
    results = made(tmp_path, cells, ("alpha", "tau"))
    axes = heat_map(results, groups(results, two_axes=True)[0], "asr", Final.LAST).axes[0]
    (mesh,) = [found for found in axes.collections if isinstance(found, QuadMesh)]
    for text, value in zip(axes.texts, np.ma.asarray(mesh.get_array()).ravel(), strict=True):
        light, dark = sorted((luminance(text.get_color()), luminance(mesh.to_rgba(value))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5  # what WCAG 2.2 asks of text


def test_files_are_named_by_what_they_show_and_captions_say_what_it_is(results):
    with same_bytes():
        found = pictures(results, Final.LAST, boards(results, Final.LAST))
    assert [picture.name for picture in found] == [
        "acc_and_asr_by_round-DBA",
        "acc_and_asr_by_round-none",
        "acc_and_asr_by_rule-DBA",
        "acc_and_asr_by_rule-none",
        "acc_by_rule_and_attack",
        "asr_by_rule_and_attack",
    ]
    assert found[0].caption == (
        "50% of a_b (attack DBA). Acc and ASR by round and rule; means over seeds, bands from the smallest to the largest."
    )
    deviations = "last round, means and sample standard deviations over seeds"
    assert found[2].text == f"Acc and ASR by rule: {deviations}, n = 2 seeds."
    assert found[3].text == "Acc and ASR by rule: last round, n = 1 seed."
    assert found[5].text == f"ASR by rule and attack: {deviations}, n = 1 to 2 seeds."
    latex = latex_figures(found, "made", "figures")
    assert r"\includegraphics[width=\linewidth]{figures/acc_and_asr_by_round-DBA.pdf}" in latex
    assert r"\caption{50\% of a\_b (attack DBA). Acc" in latex
    assert r"\label{fig:made-acc_and_asr_by_round-DBA}" in latex
    assert latex.count(r"\begin{figure}") == latex.count(r"\end{figure}") == len(found)


def test_fonts_in_a_pdf_are_true_type_and_bytes_the_same(results):
    (group,) = groups(results, two_axes=True)
    with same_bytes():
        one, other = (pdf(heat_map(results, group, "acc", Final.LAST)) for _ in range(2))
    assert one == other
    assert re.findall(rb"/Subtype /(Type3|Type0|Type1)\b", one)[:1] == [b"Type0"]
    assert b"Type3" not in one
    assert b"CreationDate" not in one


@pytest.mark.parametrize("text", ["../../etc/passwd", "a/b", "CON:", "\u4e2d\u6587", "", "x" * 300, "two\nlines", "-rf", "50%"])
def test_names_of_files_are_harmless(text):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,84}", file_name(text, set()))


def test_no_two_figures_have_one_name():
    taken: set[str] = set()
    assert [file_name(text, taken) for text in ("a b", "a_b", "A_B", "a_b-2")] == ["a_b", "a_b-2", "A_B-3", "a_b-2-2"]


def test_long_labels_are_cut():
    assert shortened("x" * 41) == "x" * 39 + "\u2026"
    assert shortened("x" * 40) == "x" * 40
