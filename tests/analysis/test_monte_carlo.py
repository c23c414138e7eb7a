import pytest
import torch

from fl_lightning import ConfigurationError
from fl_lightning.analysis.monte_carlo import divisions, simulate
from fl_lightning.analysis.theory import Setting, theorem10

SETTINGS = [
    Setting(20, 4, alpha=0.25, tau=0.5, inclusive=True),
    Setting(20, 4, alpha=0.25, tau=0.2),
    Setting(15, 2, alpha=0.25, tau=0.6),
    Setting(20, 4, alpha=0.25, tau=0.6),
    Setting(7, 3, alpha=0.2, tau=0.1),  # more attackers than are trimmed
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("p", [0.1, 0.3])
def test_closed_forms_lie_within_the_interval(setting, p):
    exact, seen = theorem10(setting, p), simulate(setting, p, trials=20_000, confidence=0.9999)
    assert seen.benign.low <= exact.benign <= seen.benign.high
    assert seen.malicious.low <= exact.malicious <= seen.malicious.high
    # What the rule does against one attack lies between what it must do and what can be done to it.
    assert seen.opposed_benign.value >= seen.benign.value
    assert seen.opposed_malicious.value <= seen.malicious.value


def test_what_all_out_opposition_does_to_the_cifar10_setting():
    for p, malicious, benign in ((0.1, 0.003, 0.93), (0.3, 0.029, 0.24)):
        seen = simulate(SETTINGS[1], p, trials=50_000)
        assert seen.opposed_malicious.value == pytest.approx(malicious, abs=2e-3)
        assert seen.opposed_benign.value == pytest.approx(benign, abs=6e-3)


def test_attackers_who_know_everything_by_hand():
    """Five clients, one malicious, one trimmed from each tail, and a majority of three passes."""
    setting = Setting(5, 1, alpha=0.2, tau=0.1)
    certain, possible = divisions(setting, torch.tensor([4, 3, 2]))
    # 4 : 1 and 5 : 0 are certain. 3 : 2, the attacker against, passes and leaves one negative entry. 2 : 3 passes negatively.
    assert certain.tolist() == [True, False, False]
    assert possible.tolist() == [False, True, True]


def test_the_same_seed_gives_the_same_draws():
    first, second = (simulate(SETTINGS[1], 0.2, trials=500, seed=seed) for seed in (3, 3))
    assert first == second
    assert simulate(SETTINGS[1], 0.2, trials=500, seed=4) != first


def test_mistakes():
    with pytest.raises(ConfigurationError, match="trials must be at least 1"):
        simulate(SETTINGS[0], 0.1, trials=0)
    with pytest.raises(ConfigurationError, match="confidence must lie between"):
        simulate(SETTINGS[0], 0.1, confidence=1.0)
