"""The file that `sweep --template` writes."""

import re
from pathlib import Path

import pytest
import yaml

from fl_lightning.cli import main
from fl_lightning.experiments.sweep import KEYS, SETTING_KEYS, read_sweep
from fl_lightning.experiments.template import template


def test_it_is_a_sweep_whose_runs_are_listed_as_it_is(tmp_path, capsys):
    main(["sweep", "--template", "mine.yaml"])
    assert "mine.yaml" in capsys.readouterr().out
    assert Path("mine.yaml").read_text() == template()
    main(["sweep", "mine.yaml", "--dry-run"])
    assert "18 pending" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_every_key_is_explained_and_what_is_left_out_is_valid_too(tmp_path):
    text = template()
    known = [*KEYS, "seed", *SETTING_KEYS]
    for key in known:
        assert re.search(rf"(^|[ #{{]){key}:", text, flags=re.MULTILINE), key
    lines = text.split("\n")
    for key in KEYS:  # a comment above each says what it means, and what holds without it
        (place,) = [number for number, line in enumerate(lines) if re.match(rf"#?{key}:", line)]
        above = next(number for number in range(place, 0, -1) if not lines[number - 1].startswith("# "))
        assert above < place, key
        assert key == "axes" or "Default:" in " ".join(lines[above:place]), key
    whole = tmp_path / "whole.yaml"
    whole.write_text(re.sub(r"^( *)#(?=\w|  - )", r"\1", text, flags=re.MULTILINE))
    content = yaml.safe_load(whole.read_text())
    assert set(content) == set(KEYS)
    sweep = read_sweep(whole)
    assert (sweep.name, sweep.center) == ("my_sweep", {"epochs": "1"})
    assert len(sweep.cells) == 3 * 2 * 3 - 2  # all but those that are excluded
    assert [cell.paper for cell in sweep.cells if cell.paper] == [{"acc": 0.99, "asr": 0.75}] * 2


def test_it_is_printed_where_no_file_is_named(capsys):
    main(["sweep", "--template"])
    assert capsys.readouterr().out == template()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--template", "there.yaml"], "--template there.yaml: it is there already and is left as it is"),
        (["--template", "new.txt"], "--template new.txt: a sweep's file ends in .yaml or .yml"),
        (["--template", "two words.yaml"], "name must consist of letters"),
        (["--template", "new.yaml", "--dry-run"], "--template writes a file and runs nothing: give it alone"),
        (["there.yaml", "--template"], "--template writes a file and runs nothing: give it alone"),
        (["--template", "no/such/folder.yaml"], "no/such/folder.yaml: No such file or directory"),
    ],
)
def test_a_mistake_ends_in_one_line_and_changes_nothing(tmp_path, capsys, args, message):
    Path("there.yaml").write_text("axes: {seed: [0]}\n")
    with pytest.raises(SystemExit) as left:
        main(["sweep", *args])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "axes: {seed: [0]}\n"
