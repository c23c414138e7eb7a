"""Which cells share a picture or a table."""

from made_sweeps import made

from fl_lightning.experiments.groups import Group, groups

POINT = [(0.5, 0.25)] * 3


def told(found: list[Group]) -> list[tuple[str, str, str, dict[tuple[str, str], int]]]:
    return [(group.rows, group.columns, group.suffix, group.cells) for group in found]


def test_rules_are_compared_for_every_combination_of_the_other_axes(tmp_path):
    cells = {(task, rule, attack): [POINT] for task in "st" for rule in ("A", "B") for attack in ("x", "y")}
    results = made(tmp_path, cells, ("task", "rule", "attack"))
    assert told(groups(results, two_axes=False)) == [
        ("rule", "", "s-x", {("A", ""): 0, ("B", ""): 2}),
        ("rule", "", "s-y", {("A", ""): 1, ("B", ""): 3}),
        ("rule", "", "t-x", {("A", ""): 4, ("B", ""): 6}),
        ("rule", "", "t-y", {("A", ""): 5, ("B", ""): 7}),
    ]
    of_two = groups(results, two_axes=True)
    assert told(of_two)[0] == ("rule", "attack", "s", {("A", "x"): 0, ("A", "y"): 1, ("B", "x"): 2, ("B", "y"): 3})
    assert [group.name for group in of_two] == ["task s", "task t"]


def test_an_axis_with_one_label_tells_no_groups_apart(tmp_path):
    results = made(tmp_path, {("s", "A"): [POINT], ("s", "B"): [POINT]}, ("task", "rule"))
    assert told(groups(results, two_axes=True)) == [("rule", "", "", {("A", ""): 0, ("B", ""): 1})]


def test_combinations_that_the_sweep_leaves_out_are_in_no_group(tmp_path):
    results = made(tmp_path, {("A", "x"): [POINT], ("B", "x"): [POINT], ("B", "y"): [POINT]})
    (group,) = groups(results, two_axes=True)
    assert group.cells == {("A", "x"): 0, ("B", "x"): 1, ("B", "y"): 2}
    assert (group.row_labels, group.column_labels) == (["A", "B"], ["x", "y"])


def test_one_axis_at_a_time_is_looked_at_about_the_centre(tmp_path):
    cells = {labels: [POINT] for labels in (("1", "5"), ("2", "4"), ("2", "5"), ("2", "6"), ("3", "5"))}
    results = made(tmp_path, cells, ("tau", "alpha"), center={"tau": "2", "alpha": "5"})
    assert told(groups(results, two_axes=False)) == [
        ("tau", "", "", {("1", ""): 0, ("2", ""): 2, ("3", ""): 4}),
        ("alpha", "", "", {("4", ""): 1, ("5", ""): 2, ("6", ""): 3}),
    ]


def test_rules_about_a_centre_are_compared_once_there(tmp_path):
    cells = {(rule, tau): [POINT] for rule in "AB" for tau in ("1", "2")}
    results = made(tmp_path, cells, ("rule", "tau"), center={"tau": "2"})
    assert [group.suffix for group in groups(results, two_axes=False)] == ["tau 1", "tau 2"]
    (group,) = groups(results, two_axes=True)
    assert (group.rows, group.columns) == ("rule", "tau")


def test_a_sweep_of_seeds_alone_is_one_group(tmp_path):
    results = made(tmp_path, {(): [POINT, POINT]}, ())
    (group,) = groups(results, two_axes=True)
    assert (group.rows, group.columns, group.cells, group.compares) == ("", "", {("base", ""): 0}, "seed")


def test_an_axis_of_attacks_alone_is_the_one_that_is_shown(tmp_path):
    results = made(tmp_path, {("A", "x"): [POINT], ("A", "y"): [POINT]})
    assert [group.rows for group in groups(results, two_axes=True)] == ["attack"]
