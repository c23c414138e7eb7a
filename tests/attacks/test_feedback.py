"""What 3DFed's attackers learn from planted values, and the noise that they lay over their back door."""

import numpy as np
import pytest
import torch
from rows import drawn

from fl_lightning.attacks.feedback import Feedback, Indicator, fates
from fl_lightning.attacks.noise_masks import noise_masks


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def told(groups: list[int], shares: list[float], **settings) -> Feedback:
    """Indicators of value 2 of which these shares came into the model."""
    feedback = Feedback(planted=[Indicator(k, 2.0, group) for k, group in enumerate(groups)], **settings)
    feedback.learn(2 * torch.tensor(shares), draws())
    return feedback


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.1, 0.1], ["accepted", "accepted"]),
        ([0.1, 0.081, 0.08, 0.0], ["accepted", "accepted", "clipped", "rejected"]),
        ([1e-5, 2e-5], ["rejected", "accepted"]),
        ([-1e-6, 0.0], ["rejected", "rejected"]),
        ([], []),
    ],
)
def test_fates(shares, expected):
    assert fates(shares) == expected


def test_where_nobody_is_accepted_there_is_a_decoy_more_and_alphas_are_drawn_anew():
    feedback = told([0, 0, 1, -1], [0.0, 0.0, 0.0, 0.1], alphas=[0.25, 0.75], decoys=2)
    assert feedback.decoys == 2  # one accepted, one more
    assert told([0, 0], [0.0, 0.0], decoys=2).decoys == 3
    assert feedback.alphas == torch.rand(2, generator=draws()).tolist()


def test_accepted_groups_keep_their_alpha_and_others_come_near():
    feedback = told([0, 1, 2, -1, -1], [0.0, 0.1, 0.1, 0.1, 0.1], alphas=[0.9, 0.3, 0.4], decoys=1)
    assert feedback.decoys == 0
    assert feedback.alphas[1:] == [0.3, 0.4]
    assert min(abs(feedback.alphas[0] - alpha) for alpha in (0.3, 0.4)) < 0.4
    assert feedback.alphas[0] != 0.9


@pytest.mark.parametrize("share", [1.5, -0.01])
def test_added_noise_is_noticed_and_nothing_is_believed_then(share):
    feedback = told([0, 1], [share, 0.1], alphas=[0.9, 0.3], decoys=1)
    assert (feedback.weak_dp, feedback.decoys, feedback.alphas) == (True, 1, [0.9, 0.3])
    assert [feedback.alpha(group, draws()) for group in (0, 5)] == [0.1, 0.1]


def test_an_update_that_was_taken_alone_is_no_noise_for_what_float32_rounds():
    weight, value = torch.tensor(0.1), torch.tensor(1e-3)
    share = float((weight - (weight - value)) / value)
    assert share > 1
    assert told([0, 1], [share, 0.0], alphas=[0.9, 0.3]).fates == ["accepted", "rejected"]


def test_it_goes_through_plain_numbers():
    feedback = told([0, -1], [0.1, 0.1], alphas=[0.5], decoys=1, round_number=7)
    assert Feedback.from_dict(feedback.as_dict()) == feedback


# ---- noise -----------------------------------------------------------------------------------------------------------


def by_hand(update: np.ndarray, noise: np.ndarray, alpha: float) -> np.ndarray:
    """Thirty steps with gradients written out, and the group's mean taken off."""
    noise, multiplier = noise.copy(), 0.0
    for _ in range(30):
        under = update + noise
        energies = np.abs(under).sum(-1, keepdims=True)
        together = noise.sum(0)
        norm = np.sqrt((together**2).sum())
        lengths = np.sqrt((noise**2).sum((1, 2), keepdims=True))
        gradient = -alpha * 0.1 * np.sign(under) / energies**2
        gradient += (1 - alpha) * 0.03 * noise / lengths + multiplier * 0.01 * together / norm
        noise = noise - 0.1 * gradient / (1 + multiplier)
        multiplier += 0.1 * norm
    return noise - noise.mean(0)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_noise_against_gradients_by_hand(alpha):
    update, neurons = 0.3 * drawn(5, 7), torch.tensor([3, 0, 4])
    found = noise_masks(update, 4, alpha, neurons, draws())
    size = update.double().square().mean().sqrt()
    first = size * torch.randn(4, 3, 7, generator=draws(), dtype=torch.float64)
    expected = by_hand(update[neurons].double().numpy(), first.numpy(), alpha)
    np.testing.assert_allclose(found[:, neurons].numpy(), expected, rtol=1e-5, atol=1e-7)
    assert not found[:, [1, 2]].any()
    np.testing.assert_allclose(found.sum(0).numpy(), 0, atol=1e-5)


def test_nobody_to_hide_among_and_nothing_to_hide():
    assert not noise_masks(drawn(3, 4), 1, 0.5, torch.tensor([0, 2]), draws()).any()
    assert noise_masks(torch.zeros(3, 4), 2, 0.5, torch.tensor([0, 2]), draws()).isfinite().all()
    assert not noise_masks(drawn(1, 4), 3, 0.5, torch.empty(0, dtype=torch.int64), draws()).any()
