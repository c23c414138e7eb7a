"""LaTeX tables: the numbers, what is bold, what is missing, and whether LaTeX takes them."""

import re
import shutil
import subprocess

import pytest
from made_sweeps import made

from fl_lightning.experiments.figures import same_bytes
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.league import boards
from fl_lightning.experiments.paper_tables import latex_tables
from fl_lightning.experiments.pictures import latex_figures, pictures
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.run_folder import State

PDFLATEX = shutil.which("pdflatex")


def flat(acc: float, asr: float, rounds: int = 12) -> list[tuple[float, float]]:
    return [(acc, asr)] * rounds


def rows(latex: str) -> list[list[str]]:
    """The cells of every row of the tables, one that spans several counted as it stands."""
    return [
        [cell.strip() for cell in line.removesuffix(r" \\").split(" & ")] for line in latex.split("\n") if line.endswith(r"\\")
    ]


def columns(row: list[str]) -> int:
    spans = [re.match(r"\\multicolumn\{(\d+)\}", cell) for cell in row]
    return sum(int(span[1]) if span else 1 for span in spans)


def check_structure(latex: str) -> None:
    """Balanced braces and environments, as many columns in each row as the table has, no character that TeX has a use for."""
    for table in re.findall(r"\\begin\{table\*?\}.*?\\end\{table\*?\}", latex, flags=re.DOTALL):
        (spec,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", table)
        assert {columns(row) for row in rows(table)} == {len(spec)}
        for first, last in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", table):
            assert 2 <= int(first) < int(last) <= len(spec)
        assert table.count(r"\toprule") == table.count(r"\bottomrule") == 1
    bare = re.sub(r"^%.*$", "", latex, flags=re.MULTILINE)
    assert sorted(re.findall(r"\\begin\{(.*?)\}", bare)) == sorted(re.findall(r"\\end\{(.*?)\}", bare))
    plain = re.sub(r"\\[&%$#_{}\\]", "", bare)
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    text = re.sub(r"\$[^$]*\$|\\(?:label|includegraphics(?:\[.*?\])?)\{.*?\}", "", plain)
    assert not set(text) & set("#%_^~<>|")
    known = (
        "begin end centering caption label smallskip small setlength tabcolsep toprule midrule bottomrule cmidrule multicolumn "
        "textbf scriptsize footnotesize pm rlap textless textgreater textbar textbackslash textasciitilde textasciicircum "
        "includegraphics linewidth"
    )
    assert set(re.findall(r"\\([A-Za-z]+)", plain)) <= set(known.split())


@pytest.fixture
def results(tmp_path) -> Results:
    return made(
        tmp_path,
        {
            ("no defence", "DBA"): [flat(0.99, 0.01), flat(0.99, 0.01)],
            ("no defence", "none"): [flat(0.99, 0.01), flat(0.99, 0.01)],
            ("a_b & 50%", "DBA"): [flat(0.8, 0.6), flat(0.6, 0.2)],
            ("a_b & 50%", "none"): [flat(0.9, 0.1), State.FAILED],
            ("[Krum]", "DBA"): [flat(0.7, 0.3), flat(0.7002, 0.3001)],
            ("[Krum]", "none"): [State.PENDING, State.PENDING],
            ("Bulyan", "DBA"): [flat(0.5, 0.9), flat(0.5, 0.9)],
        },
        title="T_1",
        attack_free={"rule": "no defence"},
    )


def test_rules_against_attacks_with_the_best_bold_and_reasons_for_what_is_missing(results):
    latex = latex_tables(results, Final.LAST)
    check_structure(latex)
    assert rows(latex) == [
        ["", r"\multicolumn{2}{c}{DBA}", r"\multicolumn{2}{c}{none}"],
        ["rule", "Acc", "ASR", "Acc", "ASR"],
        ["no defence", *[rf".{value}{{\scriptsize$\pm$.000}}" for value in ("990", "010", "990", "010")]],
        [
            r"a\_b \& 50\%",
            r"\textbf{.700}{\scriptsize$\pm$.141}",
            r".400{\scriptsize$\pm$.283}",
            r".900\rlap{$^{a}$}",
            r".100\rlap{$^{a}$}",
        ],
        [
            "{}[Krum]",
            r"\textbf{.700}{\scriptsize$\pm$.000}",
            r"\textbf{.300}{\scriptsize$\pm$.000}",
            r"--\rlap{$^{b}$}",
            r"--\rlap{$^{b}$}",
        ],
        ["Bulyan", r".500{\scriptsize$\pm$.000}", r".900{\scriptsize$\pm$.000}", r"--\rlap{$^{c}$}", r"--\rlap{$^{c}$}"],
    ]
    assert r"{\footnotesize $^{a}$\,1 of 2 seeds, the rest failed; $^{b}$\,not run; $^{c}$\,left out of the sweep.}" in latex
    assert (
        r"\caption{T\_1. Acc and ASR by rule and attack: last round, means and sample standard deviations over seeds, "
        r"n = 1 to 2 seeds. Bold: the highest Acc and the lowest ASR of each column, no defence apart.}"
    ) in latex


def test_means_of_the_last_ten_rounds_are_told_from_the_last(tmp_path):
    rising = [(t / 12, 1 - t / 12) for t in range(1, 13)]
    results = made(tmp_path, {("A", "x"): [rising], ("B", "x"): [flat(0.5, 0.5)]})
    last, mean = latex_tables(results, Final.LAST), latex_tables(results, Final.MEAN)
    assert rows(last)[1:] == [["A", r"\textbf{1.000}", r"\textbf{.000}"], ["B", ".500", ".500"]]
    average = sum(range(3, 13)) / 10 / 12
    assert rows(mean)[1] == ["A", rf"\textbf{{.{1000 * average:.0f}}}", rf"\textbf{{.{1000 - 1000 * average:.0f}}}"]
    assert "last round, n = 1 seed." in last
    assert "mean of the last 10 evaluations (rounds 3 to 12), n = 1 seed." in mean


def test_too_few_evaluations_for_a_mean_are_said(tmp_path):
    results = made(tmp_path, {("A", "x"): [flat(0.5, 0.5, rounds=2)], ("B", "x"): [State.FAILED]})
    latex = latex_tables(results, Final.MEAN)
    assert r"$^{a}$\,fewer than 3 evaluations; $^{b}$\,failed." in latex
    assert "Bold" not in latex


def test_attacks_alone_are_no_contest(tmp_path):
    results = made(tmp_path, {("A", "x"): [flat(0.5, 0.5)], ("A", "y"): [flat(0.6, 0.4)]})
    latex = latex_tables(results, Final.LAST)
    assert rows(latex) == [["attack", "Acc", "ASR"], ["x", ".500", ".500"], ["y", ".600", ".400"]]
    assert "bf" not in latex
    assert "Bold" not in latex


def test_there_is_a_table_for_every_label_of_further_axes(tmp_path):
    cells = {(task, rule, attack): [flat(0.5, 0.5)] for task in ("s", "t") for rule in ("A", "B") for attack in ("x", "y")}
    latex = latex_tables(made(tmp_path, cells, ("task", "rule", "attack")), Final.LAST)
    check_structure(latex)
    assert re.findall(r"\\label\{(.*?)\}", latex) == ["tab:made-s", "tab:made-t"]
    assert "(task t)" in latex
    assert latex.count(r"\textbf{.500}") == 2 * 2 * 4  # ties are bold


def test_many_attacks_go_on_below(tmp_path):
    attacks = [f"{number / 10}" for number in range(7)]
    cells = {(rule, attack): [flat(0.5, 0.5), flat(0.6, 0.4)] for rule in ("A", "B") for attack in attacks}
    latex = latex_tables(made(tmp_path, cells, ("rule", "share")), Final.LAST)
    check_structure(latex)
    heads = [cell for row in rows(latex) for cell in row if "multicolumn" in cell]
    assert heads == [rf"\multicolumn{{2}}{{c}}{{share {attack}}}" for attack in attacks]
    assert [row[0] for row in rows(latex)] == ["", "rule", "A", "B"] * 3
    assert "table*" in latex


def test_a_sweep_of_seeds_alone_has_a_table(tmp_path):
    latex = latex_tables(made(tmp_path, {(): [flat(0.5, 0.5), flat(0.5, 0.5)]}, ()), Final.LAST)
    check_structure(latex)
    assert rows(latex)[1][0] == "base"


HOSTILE = [r"\input{x} \write18{ls}", "& % # _ ^ ~ { } < > |", "$x$ -- [5]", "*a", "\u03c4 \u2265 .6 \u00b1 .1", "two\nlines"]


@pytest.fixture
def hostile(tmp_path) -> Results:
    cells = {(rule, attack): [flat(0.5, 0.5)] for rule in HOSTILE for attack in HOSTILE[:4]}
    return made(tmp_path / "hostile", cells, title=" ".join(HOSTILE))


def test_labels_are_text_for_latex(hostile):
    latex = latex_tables(hostile, Final.LAST).replace(r"$\tau$", "").replace(r"$\geq$", "")
    check_structure(latex)
    assert r"\input" not in latex


@pytest.mark.slow
@pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex")
@pytest.mark.parametrize("options", ["", "[twocolumn]"])
def test_plain_pdflatex_takes_tables_and_figures(tmp_path, results, hostile, options):
    assert PDFLATEX is not None
    with same_bytes():
        found = pictures(results, Final.LAST, boards(results, Final.LAST))
    (tmp_path / "figures").mkdir()
    for picture in found:
        (tmp_path / "figures" / f"{picture.name}.pdf").write_bytes(picture.pdf)
    body = "\n".join(
        [latex_tables(results, Final.LAST), latex_tables(hostile, Final.MEAN), latex_figures(found, "made", "figures")]
    )
    page = rf"\documentclass{options}{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "paper.tex").write_text(page)
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
