"""From a sweep's file to runs."""

from pathlib import Path

import pytest
import yaml

from fl_lightning import ConfigurationError
from fl_lightning.configuration import resolve
from fl_lightning.experiments.settings import arguments, run_id, with_seed
from fl_lightning.experiments.sweep import matches, read_sweep
from fl_lightning.options.class_settings import with_settings

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").rglob("*.yaml"))
BASE = str(CONFIGS / "quickstart.yaml")


def write(folder: Path, text: str) -> Path:
    (folder / "some.yaml").write_text(text)
    return folder / "some.yaml"


def cells(folder: Path, text: str) -> list[tuple[str, ...]]:
    return [tuple(cell.labels.values()) for cell in read_sweep(write(folder, text)).cells]


def test_cells_are_all_combinations_in_order_but_the_excluded(tmp_path):
    text = """
    axes:
      rule: {FedAvg: {model: {aggregator: FedAvg}}, Median: {model: {aggregator: Median}}}
      epochs: {setting: model.local.epochs, values: [1, 2]}
      seed: [3, 4]
    exclude: [{rule: Median, epochs: 1}]
    """
    assert cells(tmp_path, text) == [("FedAvg", "1"), ("FedAvg", "2"), ("Median", "2")]
    sweep = read_sweep(tmp_path / "some.yaml")
    assert sweep.seeds == [3, 4]
    assert sweep.name == "some"
    assert sweep.cells[1].layers == [{"model": {"aggregator": "FedAvg"}}, {"model": {"local": {"epochs": 2}}}]


def test_one_axis_at_a_time(tmp_path):
    text = """
    axes:
      a: {setting: model.a, values: [1, 2, 3]}
      b: {setting: model.b, values: [1, 2]}
      rule: {x: null, y: null}
    center: {a: 2, b: 1}
    """
    expected = [("1", "1"), ("2", "1"), ("2", "2"), ("3", "1")]
    assert cells(tmp_path, text) == [(a, b, rule) for a, b in expected for rule in "xy"]


TEN = "{setting: model.a, values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}"


def test_a_sweep_that_is_too_large_is_refused_at_once(tmp_path):
    axes = "\n".join(f"  a{i}: {TEN}" for i in range(9))
    with pytest.raises(
        ConfigurationError, match=r"axes: 2,000,000,000 runs, .* at most 100,000; sizes of the axes: a0 10, .*, a8 10, seed 2\."
    ):
        read_sweep(write(tmp_path, f"axes:\n{axes}\n  seed: [0, 1]"))
    five = "\n".join(f"  a{i}: {TEN}" for i in range(5))
    assert len(read_sweep(write(tmp_path, f"axes:\n{five}")).cells) == 100_000


def test_many_axes_are_varied_one_at_a_time_without_their_product(tmp_path):
    axes = "\n".join(f"  a{i}: {TEN}" for i in range(12))
    center = ", ".join(f"a{i}: {i % 10}" for i in range(12))
    found = cells(tmp_path, f"axes:\n{axes}\ncenter: {{{center}}}")
    assert len(found) == 1 + 12 * 9
    middle = tuple(str(i % 10) for i in range(12))
    assert all(sum(a != b for a, b in zip(labels, middle, strict=True)) <= 1 for labels in found)
    assert found == sorted(set(found))  # in the order of the axes


def test_a_sweep_of_seeds_alone_has_a_cell_with_a_name(tmp_path):
    sweep = read_sweep(write(tmp_path, f"{{base: {BASE}, axes: {{seed: [0, 1]}}}}"))
    runs = sweep.runs(tmp_path)
    assert [run.name for run in runs] == ["base, seed 0", "base, seed 1"]
    assert [run.id for run in runs] == [run_id(with_seed(resolve(["fit", "--config", BASE]), seed)) for seed in (0, 1)]
    with pytest.raises(ConfigurationError, match=r"^base: "):
        sweep.runs(tmp_path, {}, ["--trainer.max_epochs", "0"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--trainer.fast_dev_run", "1"], r"fast_dev_run is 1: a trial writes nothing.*leave it out"),
        (["--trainer.fast_dev_run", "true"], r"fast_dev_run is True"),
        (["--ckpt_path", "some.ckpt"], r"ckpt_path is some\.ckpt, but a run of a sweep goes on from its own"),
        (["--trainer.limit_train_batches", "0"], r"trainer\.limit_train_batches = 0 would leave no round"),
        (["--trainer.max_epochs", "-1"], r"trainer\.max_epochs = -1 would never end"),
        (["--trainer.max_time", "00:00:00:00"], r"time of Timer is over before the first round"),
    ],
)
def test_options_by_which_no_run_would_finish_are_refused_before_the_first(tmp_path, override, message):
    sweep = read_sweep(write(tmp_path, f"{{base: {BASE}, axes: {{rule: {{x: null}}}}}}"))
    with pytest.raises(ConfigurationError, match=message):
        sweep.runs(tmp_path, {}, override)
    (run,) = sweep.runs(tmp_path, {}, ["--trainer.enable_checkpointing", "false", "--trainer.fast_dev_run", "false"])
    assert run.name == "x, seed 0"


def test_the_papers_values_go_to_the_cells_that_they_name(tmp_path):
    text = """
    axes: {rule: {x: null, y: null}, task: {s: null, t: null}}
    paper: [{rule: x, acc: 0.5}, {rule: x, task: t, asr: 1}]
    """
    sweep = read_sweep(write(tmp_path, text))
    assert [cell.paper for cell in sweep.cells] == [{"acc": 0.5}, {"acc": 0.5, "asr": 1.0}, {}, {}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {}", "needs `axes`"),
        ("[1, 2]", "needs `axes`"),
        ("axes: {rule: {x: null}}\nexlude: []", "unknown key exlude; did you mean exclude?"),
        ("axes: {rule: []}", r"axes\.rule must map labels to settings"),
        ("axes: {tau: {setting: a, values: []}}", r"axes\.tau\.values must be a list with at least one value"),
        ("axes: {tau: {setting: a}}", r"axes\.tau has `setting`, beside which `values` must stand, .*; got nothing"),
        ("axes: {tau: {setting: a, values: [1], vals: 2}}", r"axes\.tau has `setting`, .*; got values, vals"),
        ("axes: {tau: {setting: [a], values: [1]}}", r"axes\.tau\.setting must be a setting's dotted name, got \['a'\]"),
        ("axes: {rule: {x: 3}}", r"axes\.rule\.x must be a file, settings, or a list"),
        ("axes: {rule: {x: gone.yaml}}", r"axes\.rule\.x: there is no file .*gone\.yaml"),
        ("axes: {rule: {x: null}, seed: [0, 0]}", "a seed twice"),
        ("axes: {rule: {x: null}, seed: [-1]}", r"axes\.seed must be a list of whole numbers"),
        ("axes: {rule: {x: null}, seed: [true]}", r"axes\.seed must be a list of whole numbers"),
        ("axes: {rule: {Krum: null}}\nexclude: [{rule: Krumm}]", "axis rule has no Krumm; did you mean Krum"),
        ("axes: {rule: {Krum: null}}\nexclude: [{rules: Krum}]", "there is no axis rules; did you mean rule"),
        ("axes: {rule: {Krum: null}}\npaper: [{rule: Krum, acc: high}]", "acc must be a number, got 'high'"),
        (
            "axes: {rule: {Krum: null}}\npaper: [{rule: Krum, acc: .nan}]",
            r"paper: acc is a share and lies in \[0, 1\], got nan",
        ),
        (
            "axes: {rule: {Krum: null}}\npaper: [{rule: Krum, asr: .inf}]",
            r"paper: asr is a share and lies in \[0, 1\], got inf",
        ),
        ("axes: {rule: {Krum: null}}\npaper: [{rule: Krum, asr: 1.01}]", r"paper: asr is a share .*, got 1\.01"),
        ("axes: {rule: {Krum: null}}\npaper: [{rule: Krum, asr: -0.5}]", r"paper: asr is a share .*, got -0\.5"),
        ("axes: {rule: {Krum: null}}\nexclude: [{rule: Krum}]", "leaves no cell"),
        ("axes: {rule: {Krum: null}}\nname: a/b", "name must consist of letters"),
        ("axes: {rule: {Krum: null}}\nname: ..", "name must consist of letters"),
        ("axes: {rule: {true: null}}", "the label True is no text to YAML; put it in quotes"),
        ("axes: {rule: {yes: null}}", "axes.rule: yes is true to YAML 1.1 and a text to YAML 1.2"),
        ('axes: {rule: {1: null, "1": null}}', r"axes\.rule has 1 twice"),
        ("axes: {tau: {setting: a, values: [0.1, 0.1]}}", r"axes\.tau has 0\.1 twice"),
        ("axes: {rule: {x: null}, rule: {y: null}}", "some.yaml, line 1: the key rule stands twice"),
        ("axes: {rounds: {x: null}}", r"axes\.rounds: an axis is named by"),
        ("axes: {a/b: {x: null}}", r"axes\.a/b: an axis is named by"),
        ("axes: {rule", "is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_sweep(write(tmp_path, text))
    assert "some.yaml" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"gone\.yaml cannot be read: No such file"):
        read_sweep(tmp_path / "gone.yaml")


def test_a_runs_name_is_a_digest_of_what_decides_its_results(tmp_path):
    config = resolve(["fit", "--config", BASE])
    same = {
        **config,
        "trainer": {**config["trainer"], "devices": 7, "default_root_dir": "there", "logger": False},
        "ckpt_path": "last",
    }
    assert run_id(config) == run_id(same)
    assert len(run_id(config)) == 12
    for changed in (
        {**config, "seed_everything": 1},
        {**config, "trainer": {**config["trainer"], "max_epochs": 21}},
        {**config, "trainer": {**config["trainer"], "check_val_every_n_epoch": 2}},
        {**config, "trainer": {**config["trainer"], "callbacks": None}},
        {**config, "trainer": {**config["trainer"], "fast_dev_run": True}},
        {**config, "model": {**config["model"], "client": {"class_path": "Net", "init_args": {"path": "weights.pt"}}}},
    ):
        assert run_id(changed) != run_id(config)


def test_another_seed_is_what_the_command_line_makes_of_it():
    config = resolve(["fit", "--config", BASE])
    assert with_seed(config, 5) == resolve(["fit", "--config", BASE, "--seed_everything", "5"])


def test_data_that_draw_nothing_need_no_seed():
    config = {"seed_everything": 0, "model": {"seed": 0}, "data": {"class_path": "Own", "init_args": {"n": 1}}}
    assert with_seed(config, 5) == {"seed_everything": 5, "model": {"seed": 5}, "data": config["data"]}


def test_settings_that_json_cannot_hold_reach_the_command(tmp_path):
    layers = (
        read_sweep(write(tmp_path, "axes: {norm: {setting: model.local.gradient_clip_norm, values: [.inf, 1.0]}}"))
        .cells[0]
        .layers
    )
    assert resolve(["fit", "--config", BASE, *arguments(layers)])["model"]["local"]["gradient_clip_norm"] == float("inf")


def test_settings_go_to_a_class_wherever_it_is():
    config = {"a": [{"class_path": "x.Pool", "init_args": {"glove": {"dimension": 5}}}], "b": {"class_path": "Pool"}}
    given = {"Pool.glove.path": "here", "Pool.n": 3, "Other.n": 4}
    assert with_settings(config, given) == {
        "a": [{"class_path": "x.Pool", "init_args": {"glove": {"dimension": 5, "path": "here"}, "n": 3}}],
        "b": {"class_path": "Pool", "init_args": {"glove": {"path": "here"}, "n": 3}},
    }


def test_runs_have_all_settings_and_a_folder_of_their_own(tmp_path):
    text = f"""
    base: {BASE}
    axes:
      rule: {{FedAvg: {{model: {{aggregator: {{class_path: FedAvg}}}}}}, Invariant: null}}
      seed: [0, 1]
    """
    runs = read_sweep(write(tmp_path, text)).runs(tmp_path, {"Phishing.num_train": 2000}, ["--trainer.max_epochs", "3"])
    assert [run.name for run in runs] == ["FedAvg, seed 0", "FedAvg, seed 1", "Invariant, seed 0", "Invariant, seed 1"]
    assert len({run.id for run in runs}) == 4
    for run in runs:
        assert run.config["trainer"]["max_epochs"] == 3
        assert run.config["trainer"]["default_root_dir"] == str(tmp_path / run.id)
        assert run.config["data"]["init_args"]["num_train"] == 2000
        assert run.config["seed_everything"] == run.config["model"]["seed"] == run.seed
        assert run_id(run.config) == run.id
    assert "Invariant" in runs[3].config["model"]["aggregator"]["class_path"]
    assert not list(tmp_path.glob("*/*"))  # nothing was written


@pytest.mark.parametrize(
    ("axis", "given", "message"),
    [
        ("{x: {model: {agregator: {class_path: FedAvg}}}}", {}, "^x: .*did you mean aggregator"),
        (
            "{x: {model: {aggregator: {class_path: Invariant, init_args: {tau: 2}}}}}",
            {},
            r"^x: .*tau must lie in \[0, 1\], got 2",
        ),
        (
            "{x: {model: {aggregator: {class_path: Bulyan}, cohort: {clients_per_round: 10}}}}",
            {},
            r"^x: .*Bulyan: f = 2 malicious of N = 10 clients in a round, but N >= 4f \+ 3 = 11 is needed",
        ),
        ("{x: null, y: null}", {}, "'x, seed 0' and 'y, seed 0' are the same run"),
        (
            "{x: null}",
            {"Fishing.num_train": 3},
            r"--with Fishing\.num_train: there is no Fishing in the configuration; did you mean Phishing",
        ),
        ("{x: null}", {"Phishing.num_tran": 3}, "did you mean num_train"),
    ],
)
def test_a_mistake_in_a_cell_is_found_before_anything_runs(tmp_path, axis, given, message):
    sweep = read_sweep(write(tmp_path, f"{{base: {BASE}, axes: {{rule: {axis}}}}}"))
    with pytest.raises(ConfigurationError, match=message):
        sweep.runs(tmp_path, given)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_shipped_sweeps_can_be_read(path):
    sweep = read_sweep(path)
    assert f"fl-lightning sweep configs/{path.relative_to(CONFIGS)}" in path.read_text()
    several = {"quickstart.yaml": 1, "choose_cpu.yaml": 1, "worst_case.yaml": 5}  # by some of which settings are chosen
    assert sweep.seeds == list(range(several.get(path.name, 3)))
    for labels in (sweep.baseline, sweep.attack_free):
        found = sum(matches(labels, cell.labels) for cell in sweep.cells)
        assert not labels or found == (
            1 if path.parent.name != "league" else len({cell.labels["rule"] for cell in sweep.cells})
        )
    if path.name in ("table1.yaml", "table4.yaml", "table5.yaml"):
        assert all(set(cell.paper) == {"acc", "asr"} for cell in sweep.cells)


@pytest.mark.parametrize("task", ["cifar10", "phishing", "twitter"])
def test_every_cell_of_a_tasks_tables_has_valid_settings(task):
    """Tables 1 and 4; the others consist of files that are tested as configurations."""
    for name in ("table1", "table4"):
        for cell in read_sweep(CONFIGS / "sweeps" / task / f"{name}.yaml").cells:
            assert resolve(["fit", *arguments(cell.layers)])["model"]["aggregator"]["class_path"]


def test_there_is_a_sweep_for_every_table_and_figure():
    names = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in (CONFIGS / "sweeps").glob("*/")}
    tables = ["figure6", "table1", "table10", "table4", "table5", "table6", "table7", "table8"]
    assert names["cifar10"] == sorted([*tables, "table9", "choose_cpu", "table1_cpu"])
    assert names["phishing"] == tables
    assert names["twitter"] == [name for name in tables if name != "table10"]


def test_every_cell_that_a_cpu_can_run_has_valid_settings():
    for name in ("choose_cpu", "table1_cpu"):
        for cell in read_sweep(CONFIGS / "sweeps" / "cifar10" / f"{name}.yaml").cells:
            assert resolve(["fit", *arguments(cell.layers)])["trainer"]["accelerator"] == "cpu"


def test_nothing_is_chosen_for_a_cpu_by_a_run_under_attack():
    for cell in read_sweep(CONFIGS / "sweeps" / "cifar10" / "choose_cpu.yaml").cells:
        model = resolve(["fit", *arguments(cell.layers)])["model"]
        assert (model["attacks"], model["cohort"]["malicious_fraction"]) == ([], 0)
        assert model["aggregator"]["class_path"].endswith(".FedAvg")


def test_a_table_for_a_cpu_is_the_papers_but_for_how_clients_train():
    """Rows, seeds, and every setting but the network, the epochs and what a machine decides."""
    shipped, cheap = (read_sweep(CONFIGS / "sweeps" / "cifar10" / f"{name}.yaml") for name in ("table1", "table1_cpu"))
    assert cheap.seeds == shipped.seeds == [0, 1, 2]
    theirs = {cell.labels["rule"]: cell for cell in shipped.cells}
    theirs |= {cell.labels["rule"]: cell for cell in read_sweep(CONFIGS / "sweeps" / "cifar10" / "table4.yaml").cells}
    for cell in cheap.cells:
        row = theirs[cell.labels["rule"]]
        assert cell.paper == row.paper
        ours, paper = (resolve(["fit", *arguments(layers)]) for layers in (cell.layers, row.layers))
        for config in (ours, paper):
            del config["model"]["client"], config["model"]["local"]["epochs"]
            del config["trainer"]["accelerator"], config["trainer"]["default_root_dir"]
        assert ours == paper


def test_figure_6_varies_one_setting_at_a_time(tmp_path):
    sweep = read_sweep(CONFIGS / "sweeps" / "phishing" / "figure6.yaml")
    assert len(sweep.cells) == 1 + 8 + 9 + 5
    assert yaml.safe_load((CONFIGS / "phishing" / "invariant.yaml").read_text())["model"]["aggregator"]["init_args"] == {
        name: float(sweep.center[name]) for name in ("tau", "alpha")
    }
