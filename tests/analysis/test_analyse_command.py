import csv
import json
from pathlib import Path

import pytest

from fl_lightning.cli import main
from fl_lightning.experiments.results import write_index
from fl_lightning.experiments.sweep import read_sweep

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits" / "edge_case.yaml")
PHISHING = str(ROOT / "configs" / "phishing" / "invariant.yaml")
FAST = ["--rounds", "1", "--", "--trainer.accelerator", "cpu", "--model.local.epochs", "0.3"]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_figure3(tmp_path, capsys):
    main(["analyse", "figure3", "--points", "11", "--output", str(tmp_path)])
    assert "f > 0 beyond 0.39183 pi" in capsys.readouterr().out
    assert [float(row["f, closed form"]) for row in rows(tmp_path / "figure3.csv")][::10] == pytest.approx([-1.0, 0.5])
    assert (tmp_path / "figure3.png").exists()


def test_theorem10(tmp_path, capsys):
    main(["analyse", "theorem10", "--paper", "true", "--trials", "2000", "--p", "[0.1]", "--output", str(tmp_path)])
    found = {row["setting"]: row for row in rows(tmp_path / "theorem10.csv")}
    assert float(found["CIFAR-10"]["p+"]) == pytest.approx(0.4852, abs=5e-5)
    assert (found["CIFAR-10"]["regime"], found["phishing"]["regime"]) == ("out", "in")
    assert len(rows(tmp_path / "simulated.csv")) == 6
    one = ["--clients", "15", "--malicious", "2", "--tau", "0.6", "--trials", "0", "--output", str(tmp_path / "one")]
    main(["analyse", "theorem10", *one])
    assert [float(row["p-"]) for row in rows(tmp_path / "one" / "theorem10.csv")] == pytest.approx([0.2542, 0.0097], abs=1e-4)
    assert not (tmp_path / "one" / "simulated.csv").exists()


def test_theorem11(tmp_path):
    main(["analyse", "theorem11", "--output", str(tmp_path)])
    written = json.loads((tmp_path / "theorem11.json").read_text())
    assert (written["corrected"], written["printed"]) == pytest.approx((0.0233, 0.0808), abs=5e-5)


def test_figure4(tmp_path):
    points = ["--shares", "[0.0, 0.5]", "--points", "5", "--output", str(tmp_path)]
    main(["analyse", "figure4", "--config", DIGITS, *points, *FAST])
    found = rows(tmp_path / "figure4.csv")
    assert [(row["p"], row["direction"]) for row in found] == [
        ("0.0", "malicious"),
        ("0.0", "random"),
        ("0.5", "malicious"),
        ("0.5", "random"),
    ]
    curves = json.loads((tmp_path / "figure4.json").read_text())
    for curve in curves:
        # 0 is always among the points, and the backdoor is learned along the malicious direction.
        assert 0.0 in curve["distance"]
        assert len(curve["benign"]) == len(curve["backdoor"]) == 6
    malicious = curves[0]
    at = {
        round(d / max(malicious["distance"]), 3): loss
        for d, loss in zip(malicious["distance"], malicious["backdoor"], strict=True)
    }
    assert at[0.375] < at[0.0]
    assert (tmp_path / "p50" / "settings.yaml").exists()
    assert "shared_fraction: 0.5" in (tmp_path / "p50" / "config.yaml").read_text()
    # A share of .5 reaches benign data: the losses at the same initial rounds differ.
    assert curves[0]["benign"] != curves[2]["benign"]


def test_figure5(tmp_path):
    main(["analyse", "figure5", "--config", DIGITS, "--counts", "[100, 1000000]", "--output", str(tmp_path), *FAST])
    few, all_ = rows(tmp_path / "figure5.csv")
    assert (few["kept"], all_["kept"]) == ("100", "13706")
    assert float(all_["slow-down"]) == 0.0
    assert float(few["cos(g, g~)"]) > float(all_["cos(g, g~)"])
    written = json.loads((tmp_path / "figure5.json").read_text())["magnitudes"]
    assert sum(written["counts"]) + written["zeros"] == written["total"] == 13706


def test_separability_of_a_table(tmp_path, capsys):
    small = ["--data.init_args.num_train", "2000", "--data.init_args.num_test", "200"]
    main(["analyse", "separability", "--config", PHISHING, "--clients", "3", "--output", str(tmp_path), *FAST, *small])
    found = rows(tmp_path / "separability.csv")
    assert [row["model"].split(",")[0] for row in found] == ["malicious", "benign", "benign", "benign"]
    ratios = [float(row["distance / diameter"]) for row in found]
    assert all(ratio > 0 for ratio in ratios)  # a few points in many dimensions
    assert ("farther out than every benign one" in capsys.readouterr().out) == (ratios[0] > max(ratios[1:]))


def test_flatness_with_a_second_configuration(tmp_path):
    second = tmp_path / "fewer.yaml"
    second.write_text("model:\n  cohort: {clients_per_round: 5}\n")
    out = ["--clients", "3", "--output", str(tmp_path / "out")]
    main(["analyse", "flatness", "--config", DIGITS, f"--config={second}", *out, *FAST])
    found = rows(tmp_path / "out" / "flatness.csv")
    assert sum(int(row["size"]) for row in found) == 13706
    assert all(0 <= float(row["flip_rate"]) <= 1 and float(row["benign"]) <= float(row["clients"]) for row in found)
    assert "clients_per_round: 5" in (tmp_path / "out" / "run" / "settings.yaml").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "figure3"),
        (["figur3"], "there is no analysis figur3; did you mean figure3"),
        (["figure3", "--pionts", "3"], "--pionts"),
        (["figure3", "--points", "1"], "points must be at least 2, got 1"),
        (["figure3", "--points", "many"], "many"),
        (["figure3", "--output", "/dev/null/x"], "output: the folder /dev/null/x cannot be made"),
        (["figure3", "--", "--seed_everything", "1"], "figure3 trains nothing"),
        (["theorem10", "--tau", "2"], "tau must lie in [0, 1], got 2"),
        (["theorem10", "--p", "[1.5]"], "p is a probability"),
        (["theorem10", "--trials", "-1"], "trials must be at least 1, got -1"),
        (["theorem11", "--largest", "0"], "largest at least smallest"),
        (["figure4"], "needs --config FILE"),
        (["figure4", "--config", "gone.yaml"], "gone.yaml"),
        (["figure4", "--config", PHISHING], "model.attacks is ['ValueTrigger']; use a configuration with EdgeCase"),
        (["figure4", "--config", DIGITS, "--points", "2"], "points must be at least 3"),
        (["figure5", "--config", DIGITS, "--counts", "[-1]"], "counts must be numbers of coordinates"),
        (["figure5", "--config", DIGITS, "--ckpt_path", "gone.ckpt"], "there is no file gone.ckpt"),
        (["flatness", "--config", DIGITS, "--rounds", "-1"], "rounds must be at least 0, got -1"),
        (["flatness", "--config", DIGITS, "--", "--model.agregator", "Median"], "did you mean aggregator"),
        (["separability", "--config", DIGITS, "--clients", "2", "--rounds", "0"], "clients must be at least 3, got 2"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["analyse", *args])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_figure6(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(
        f"base: {PHISHING}\naxes: {{tau: {{setting: model.aggregator.init_args.tau, values: [0.0, 0.3, 0.6]}}, seed: [0, 1]}}"
    )
    with pytest.raises(SystemExit):
        main(["analyse", "figure6", str(tmp_path / "some.yaml")])
    assert "start one with `sweep`" in capsys.readouterr().err
    sweep = read_sweep(tmp_path / "some.yaml")
    runs = sweep.runs(tmp_path / "runs" / "pool")
    write_index(tmp_path / "runs" / "sweeps" / "some", sweep, runs)
    for run in runs[:4]:
        run.folder.path.mkdir(parents=True)
        (run.folder.path / "run.json").write_text(json.dumps({"finished": True, "acc": 0.5, "asr": run.seed / 4}))
    main(["analyse", "figure6", str(tmp_path / "some.yaml"), "--output", str(tmp_path / "out")])
    found = rows(tmp_path / "out" / "figure6.csv")
    assert [(row["tau"], row["asr"], row["n"]) for row in found] == [
        ("0.0", "0.125", "2"),
        ("0.3", "0.125", "2"),
        ("0.6", "nan", "0"),
    ]
    assert (tmp_path / "out" / "figure6.png").read_bytes().startswith(b"\x89PNG")
