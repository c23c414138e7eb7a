"""CRFL: keep the global model short, blur it between rounds, and let blurred copies of it vote on every prediction.

C. Xie, M. Chen, P.-Y. Chen, B. Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021,
https://arxiv.org/abs/2106.08283, algorithms 1 and 2, with the settings of its published code for MNIST.

Letters: d trainable parameters, b samples in a batch, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.aggregators.fedavg import FedAvg
from fl_lightning.checked import whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import is_one_logit
from fl_lightning.modules.predicting import predict, predicted_classes
from fl_lightning.updates.layout import Snapshot, parameter_layout


class CRFL(FedAvg):
    """A(G) = sum_i n_i g_i / sum_j n_j; what is clipped, noised and made to vote is the global model w.

    - After the server's step of round t = 0, 1, ...: w <- w min(1, rho_t / ||w||), with
      rho_t = min(`largest_norm`, `initial_norm` + `norm_growth` (t + 1)). The norm is Euclidean, over all d trainable
      parameters, in float64. This model is evaluated and saved, and is what a run ends with.
    - Before it is sent out again: w <- w + `sigma` z, z ~ N(0, I). Not before the first round.
    - Prediction: `copies` models w + `sigma_test` z, each with a z of its own, predict every sample; what is predicted is the
      share of them that votes for each class. Of classes with as many votes the first wins. Copies whose logits are not
      numbers have no vote; without any vote there is no prediction. Every evaluation batch draws copies of its own.

    Buffers and frozen parameters are neither clipped nor noised. A round that is refused is clipped all the same.

    Two things that one may expect are not so: updates are never clipped, `WeakDP` does that; and votes alone prove nothing.
    `fl-lightning analyse crfl` computes how far an attacker may go before it can change them, which is proven for convex models
    trained by plain SGD, such as `MLP` without hidden layers; for deeper networks only the votes mean something.

    Bounds: none on f for the training, as the mean has none. A model shorter than the task needs loses accuracy: look at the
    norm that a model without attackers has in the end.

    Verdict: none, as a mean judges nobody.

    Cost: a round d random numbers; an evaluation batch `copies` forward passes and `copies` * d random numbers, drawn on the
    CPU. So evaluate seldom, or with fewer copies.

    Args:
        initial_norm: the allowed length before the first round, more than 0. EMNIST 4, LOAN 2.
        norm_growth: what it grows by in a round, at least 0. EMNIST .25, LOAN .025.
        largest_norm: what it never exceeds, more than 0.
        sigma: the noise's standard deviation in training, at least 0.
        sigma_test: that of the copies, at least 0.
        copies: M, models that vote, at least 1.
        weighted: weight by sample counts; otherwise a mean.

    Differs from the published code: it divides by ||w|| + 1e-6, and clips and noises BatchNorm's statistics and counters with
    the parameters; it draws the copies once for all samples, which changes no sample's chances.

    Example:
        >>> client = L.LightningModule()
        >>> client.weights = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> CRFL(initial_norm=1.9).after_step(client, 0)
        >>> client.weights.data
        tensor([1.2000, 1.6000])
    """

    def __init__(
        self,
        *,
        initial_norm: float = 2.0,
        norm_growth: float = 0.1,
        largest_norm: float = 15.0,
        sigma: float = 0.01,
        sigma_test: float = 0.01,
        copies: int = 1000,
        weighted: bool = True,
    ) -> None:
        super().__init__(weighted=weighted)
        for name, norm in (("initial_norm", initial_norm), ("largest_norm", largest_norm)):
            if not 0 < norm < math.inf:
                raise ConfigurationError(f"CRFL.{name} must be more than 0 and finite, got {norm}; it is a length of the model")
        for name, value in (("norm_growth", norm_growth), ("sigma", sigma), ("sigma_test", sigma_test)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"CRFL.{name} must be at least 0 and finite, got {value}; 0 leaves it out")
        self.initial_norm = initial_norm
        self.norm_growth = norm_growth
        self.largest_norm = largest_norm
        self.sigma = sigma
        self.sigma_test = sigma_test
        self.copies = whole("CRFL.copies", copies, 1)

    def norm_bound(self, round_number: int) -> float:
        """rho_t.

        >>> round(CRFL().norm_bound(9), 9)
        3.0
        """
        return min(self.largest_norm, self.initial_norm + self.norm_growth * (round_number + 1))

    @torch.no_grad()
    def after_step(self, module: L.LightningModule, round_number: int) -> None:
        layout = parameter_layout(module)
        weights = layout.flatten(module).double()
        length, most = float(weights.norm()), self.norm_bound(round_number)
        if length > most:
            layout.load(module, weights * (most / length))

    @torch.no_grad()
    def before_broadcast(self, module: L.LightningModule, round_number: int) -> None:
        if round_number and self.sigma:
            layout = parameter_layout(module)
            weights = layout.flatten(module)
            layout.load(module, weights + self.sigma * torch.randn(len(weights)).to(weights.device))

    def predict(self, module: L.LightningModule, batch: Any, generator: torch.Generator) -> Tensor:
        votes = count_votes(module, batch, self.copies, self.sigma_test, generator)
        return votes / votes.sum(1, keepdim=True)


@torch.no_grad()
def count_votes(module: L.LightningModule, batch: Any, copies: int, sigma: float, generator: torch.Generator) -> Tensor:
    """How many noised copies of a model predict each class.

    Args:
        module: in evaluation mode; as before afterwards, its values too.
        batch: as `training_step` takes it.
        copies: M, at least 1.
        sigma: the standard deviation of the noise on every trainable parameter.
        generator: of the CPU.

    Returns:
        (b, C) int64; the votes for a sample add up to M, less those of copies whose logits are not numbers.
    """
    layout = parameter_layout(module)
    weights = layout.flatten(module)
    exactly = Snapshot(module)
    votes = torch.zeros(0, 0, dtype=torch.int64)
    try:
        for _ in range(copies):
            layout.load(module, weights + sigma * torch.randn(len(weights), generator=generator).to(weights.device))
            logits = predict(module, batch)
            classes = torch.arange(2 if is_one_logit(logits) else logits.shape[1], device=logits.device)
            of_copy = (predicted_classes(logits)[:, None] == classes).long()
            votes = votes + of_copy if len(votes) else of_copy
    finally:
        exactly.restore(module)
    return votes
