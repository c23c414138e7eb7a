"""The certificate of CRFL: its formula, and the command from a run to it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm

from fl_lightning import ConfigurationError
from fl_lightning.analysis.crfl import Threat, contraction, logistic_smoothness, radius, vote_bounds
from fl_lightning.cli import main

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits" / "pixel_trigger.yaml")
GIVEN: dict[str, Any] = {"attackers": 1, "share": 1 / 20, "scale": 10, "poisoned": 5 / 100, "steps": 30}
GIVEN |= {"learning_rate": 0.001, "smoothness": math.sqrt(17)}
SURE, UNSURE = torch.tensor([0.9]), torch.tensor([0.1])


def test_radius_by_hand() -> None:
    # (sqrt .9 - sqrt .1)^2 = .4; -log .6 * .01^2 = 5.108256e-5; 2 * 30^2 * 17 / 20^2 * 10^2 * .001^2 * .05^2 = 1.9125e-5
    assert float(radius(SURE, UNSURE, Threat(**GIVEN), 0.01)) == pytest.approx(1.634314, abs=5e-7)
    assert float(radius(SURE, UNSURE, Threat(**GIVEN | {"learning_rate": 0.1}), 0.01)) == pytest.approx(0.01634314, abs=5e-9)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"attackers": 3}, 1 / 3),  # R and the sum of R equal squares
        ({"share": 0.1}, 0.5),
        ({"scale": 40}, 0.25),
        ({"poisoned": 0.1}, 0.5),
        ({"steps": 60}, 0.5),
        ({"learning_rate": 0.002}, 0.5),
        ({"smoothness": 2 * math.sqrt(17)}, 0.5),
    ],
)
def test_radius_falls_with_what_an_attacker_may_do(change: dict[str, Any], factor: float) -> None:
    whole = radius(SURE, UNSURE, Threat(**GIVEN), 0.01)
    assert float(radius(SURE, UNSURE, Threat(**GIVEN | change), 0.01)) == pytest.approx(factor * float(whole))
    assert float(radius(SURE, UNSURE, Threat(**GIVEN), 0.02, 0.25)) == pytest.approx(4 * float(whole))


def test_votes_that_are_not_certain_have_no_radius() -> None:
    first, second = torch.tensor([0.5, 0.3, 1.0]), torch.tensor([0.5, 0.4, 0.0])
    assert radius(first, second, Threat(**GIVEN), 0.01).tolist() == [0, 0, math.inf]


def test_bounds_of_votes() -> None:
    votes = torch.tensor([[900, 100, 0], [1000, 0, 0], [10, 500, 490], [0, 0, 0]])
    h = math.sqrt(math.log(1000) / 2000)
    assert h == pytest.approx(0.058770, abs=5e-7)
    first, second = vote_bounds(votes, 1000, 0.001)
    assert first.tolist() == pytest.approx([0.9 - h, 1 - h, 0.5 - h, 1e-8])
    assert second.tolist() == pytest.approx([0.1 + h, h, 0.49 + h, h])


def test_bounds_hold_as_often_as_they_say() -> None:
    copies, chance, alpha = 200, 0.8, 0.05
    draws = torch.distributions.Binomial(copies, torch.full((4000,), chance, dtype=torch.float64))
    torch.manual_seed(0)
    won = draws.sample().long()
    first, second = vote_bounds(torch.stack([won, copies - won], dim=1), copies, alpha)
    assert float((first > chance).double().mean()) < alpha
    assert float((second < 1 - chance).double().mean()) < alpha


def test_contraction_and_smoothness() -> None:
    assert contraction([], []) == 1
    assert contraction([2.0, 5.0], [0.01, 0.0]) == 1  # far more than the noise, so nothing is left of the theorem's help
    assert contraction([1.0, 3.0], [1.0, 2.0]) == pytest.approx((2 * norm.cdf(1) - 1) * (2 * norm.cdf(1.5) - 1))


@pytest.mark.parametrize("length", [0.5, 1.0, 4.0])
def test_no_gradient_of_logistic_regression_changes_faster(length: float) -> None:
    """Random pairs of inputs in the ball, the second of which comes from a hill climb."""
    torch.manual_seed(0)
    rho, fastest = 3.0, 0.0

    def gradient(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        wrong = torch.softmax(weights @ torch.cat([x, torch.ones(1)]), 0) - torch.tensor([1.0, 0.0, 0.0])
        return torch.outer(wrong, torch.cat([x, torch.ones(1)]))

    for _ in range(200):
        weights = torch.randn(3, 5)
        weights *= rho / weights.norm()
        x, u = torch.randn(4), torch.randn(4)
        x, u = 0.999 * length * x / x.norm(), 1e-3 * length * u / u.norm()
        fastest = max(fastest, float((gradient(weights, x + u) - gradient(weights, x)).norm() / u.norm()))
    assert 0 < fastest <= logistic_smoothness(rho, length)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attackers", 0), ("share", 1.5), ("poisoned", 0.0), ("steps", 0), ("learning_rate", 0.0), ("scale", math.inf)],
)
def test_attacks_that_are_none_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"{setting} must .*, got {value}"):
        Threat(**GIVEN | {setting: value})
    with pytest.raises(ConfigurationError, match=r"alpha must lie in \(0, 1\), got 1"):
        vote_bounds(torch.ones(1, 2), 10, 1)


LINEAR = ["--model.client.init_args.sizes", "[64, 10]", "--model.client.init_args.optimizer.init_args.momentum", "0"]
RULE = ["--model.aggregator", "CRFL", "--model.aggregator.copies", "40", "--model.aggregator.initial_norm", "3"]
FAST = ["--trainer.accelerator", "cpu", "--model.local.epochs", "0.3"]


def test_from_a_run_to_its_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyse", "crfl", "--config", DIGITS, "--rounds", "3", "--output", str(tmp_path)]
    main([*command, "--attack_round", "2", "--", *RULE, *LINEAR, *FAST])
    shown = " ".join(capsys.readouterr().out.split())
    assert "359 test samples, 40 copies, 3 rounds" in shown
    assert "Holds if poisoned inputs are no longer than" in shown
    assert "No certificate" not in shown
    written = json.loads((tmp_path / "crfl.json").read_text())
    threat = written["threat"]
    assert (threat["attackers"], threat["learning_rate"], threat["poisoned"], threat["steps"]) == (2, 0.1, 0.2, 2)
    assert threat["share"] == pytest.approx(1 / 10, abs=2e-3)  # of ten clients of 71 or 72 samples
    bounds = torch.tensor(written["p_a"]), torch.tensor(written["p_b"])
    expected = radius(*bounds, Threat(**threat), 0.01)
    assert written["radius"] == pytest.approx(expected.tolist(), rel=1e-4)
    rows = (tmp_path / "crfl.csv").read_text().splitlines()
    assert rows[0] == "radius,certified rate,certified accuracy"
    certain = sum(value > 0 for value in written["radius"]) / 359
    assert float(rows[1].split(",")[1]) == pytest.approx(certain)
    assert (tmp_path / "crfl.png").exists()
    folder = str(tmp_path / "deep")
    main([*command[:-1], folder, "--smoothness", "9", "--", *RULE, *FAST])
    shown = " ".join(capsys.readouterr().out.split())
    assert "No certificate: it is proven for one linear layer" in shown
    assert "plain SGD without momentum" in shown


@pytest.mark.parametrize(
    ("own", "overrides", "message"),
    [
        ([], [], "the certificate is CRFL's, but model.aggregator is FedAvg"),
        (["--attack_round", "2"], RULE, "attack_round must lie between 1 and the 1 rounds of the model, got 2"),
    ],
)
def test_mistakes(own: list[str], overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["analyse", "crfl", "--config", DIGITS, "--rounds", "1", *own, "--", *overrides, *FAST])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
