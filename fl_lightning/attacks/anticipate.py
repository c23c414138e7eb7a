"""Anticipate: attackers look for weights whose back door will still be there after several rounds of others' training.

Y. Wen, J. Geiping, L. Fowl, H. Souri, R. Chellappa, M. Goldblum, T. Goldstein, "Thinking Two Moves Ahead: Anticipating Other
Users Improves Backdoor Attacks in Federated Learning", 2022, https://arxiv.org/abs/2210.09305, and the authors' code,
https://github.com/YuxinWenRick/thinking-two-moves-ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Broadcast, Stage
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import logits_with, pair_of

Weights = dict[str, Tensor]
"""Trainable parameters by name."""


class Anticipate(Attack):
    """In every local step, malicious clients go down the loss that the global models of this round and the next will have.

    With theta the weights in training, w_G those that the round started from, N clients in the round and SGD_j some steps of
    gradient descent on a batch of the attacker's clean data, as an attacker thinks that all others take in round t + j,

        w_1 = 1/N theta + (1 - 1/N) SGD_0(w_G),    w_{j+1} = SGD_j(w_j),    L = sum over j = 1 .. k of CE(w_j; batch)

    where the batch is the client's own of this step, poisoned samples and clean ones. The gradient goes through all of it to
    theta, so that a back door is written where others' training leaves it. Of L only a part of 1/N reaches theta: scale the
    update (`ModelReplacement`), as the authors do, attack in many rounds, or give attackers a larger learning rate.

    Put it after an attack that poisons data, and before others with a loss of their own, such as `ConstrainAndScale`. Epochs,
    batch size and optimizer are those of malicious clients (`model.attackers`). A step takes about k + 2 k `steps` passes
    forward and backward in place of one, and the memory of k `steps` steps. Dropout is drawn anew in every pass; BatchNorm
    uses the statistics of each batch, and none of this moves its running ones.

    Args:
        rounds: k, at least 1; with 1 nobody trains after the attack. The authors' script has 2 by default.
        lr: the learning rate that others are thought to have, more than 0: that of benign clients. There is no momentum.
        decay: it is multiplied by decay^(t + j) in round t + j, in (0, 1].
        steps: on the batch that stands for a round's training, at least 1, all on the same one.
        together: whether an attacker reckons with the f malicious clients of its round: f/N in place of 1/N.

    Raises:
        ConfigurationError: in the first attacked round, if batches are not (inputs, targets) or `forward` gives no logits.

    Differs from the authors' code: the batches of clean data that stand for a round's training are drawn from the attacker's
    own clean samples without those that poison them, a fresh one for each round; others' training is not differentiated where
    theta has no part in it. k and `steps` are those of its copy in Chameleon's code; the paper's, from memory, is k = 9.

    Example:
        >>> from fl_lightning.data import TensorSamples
        >>> attack, module, nobody = Anticipate(rounds=1), nn.Linear(1, 2, bias=False), Broadcast(torch.tensor([4.0, 0.0]))
        >>> clean = TensorSamples(torch.zeros(1, 1), torch.tensor([0]))  # of which nobody learns anything
        >>> attack.rehearse([clean], [Attacker(0, 0, clean)], num_benign=3)
        []
        >>> _ = module.weight.data.copy_(torch.tensor([[0.0], [4.0]]))
        >>> for _ in attack.stages(module, clean, Attacker(0, 0, clean)):  # w_1 = (4, 0) * 3/4 + (0, 4) / 4
        ...     round(attack.loss(module, (torch.ones(1, 1), torch.tensor([1])), torch.zeros(()), nobody).item(), 4)
        2.1269
    """

    replaces_loss = True

    def __init__(
        self, *, rounds: int = 5, lr: float = 0.01, decay: float = 0.998, steps: int = 5, together: bool = False
    ) -> None:
        for name, count in (("rounds", rounds), ("steps", steps)):
            if count < 1:
                raise ConfigurationError(f"Anticipate.{name} must be at least 1, got {count}")
        if not 0 < lr < math.inf:
            raise ConfigurationError(
                f"Anticipate.lr must be more than 0 and finite, got {lr}; benign clients' learning rate is meant"
            )
        if not 0 < decay <= 1:
            raise ConfigurationError(f"Anticipate.decay must be more than 0 and at most 1, got {decay}")
        self.rounds = rounds
        self.lr = lr
        self.decay = decay
        self.steps = steps
        self.together = together
        self.share = 1.0  # of theta in the mean
        self._clean: tuple[Samples, torch.Generator] | None = None  # of the client in training, and its draws

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        """Asks for nothing, but sees how many clients there are."""
        f = len(attackers)
        self.share = (f if self.together else 1) / (f + num_benign)
        return []

    def stages(self, module: nn.Module, clean: Samples, attacker: Attacker) -> Iterator[Stage]:
        self._clean = clean, attacker.generator(f"anticipate, round {attacker.round_number}")
        try:
            yield Stage()
        finally:
            self._clean = None

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        inputs, targets = pair_of(batch, "Anticipate")
        theta = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        sent = broadcast.weights.split([parameter.numel() for parameter in theta.values()])
        start = {
            name: weights.view_as(theta[name]).detach().requires_grad_() for name, weights in zip(theta, sent, strict=True)
        }
        others = self._trained(module, start, len(targets), broadcast.round_number, differentiable=False)
        weights = {name: self.share * theta[name] + (1 - self.share) * others[name] for name in theta}
        total = F.cross_entropy(logits_with(module, weights, inputs, "Anticipate"), targets)
        for j in range(1, self.rounds):
            weights = self._trained(module, weights, len(targets), broadcast.round_number + j, differentiable=True)
            total = total + F.cross_entropy(logits_with(module, weights, inputs, "Anticipate"), targets)
        return total

    def _trained(self, module: nn.Module, weights: Weights, b: int, t: int, *, differentiable: bool) -> Weights:
        """SGD: what a round of clean training makes of weights, in the attacker's mind.

        Args:
            module: gives the form, and the tensors that are not trained.
            weights: where it begins.
            b: samples in its batch.
            t: the round.
            differentiable: whether gradients go through the steps.
        """
        assert self._clean is not None, "a client is in training"
        clean, draws = self._clean
        rate, device = self.lr * self.decay**t, next(iter(weights.values())).device
        inputs, targets = pair_of(clean.batch(torch.randperm(len(clean), generator=draws)[:b], draws), "Anticipate")
        inputs, targets = inputs.to(device), targets.to(device)
        for _ in range(self.steps):
            loss = F.cross_entropy(logits_with(module, weights, inputs, "Anticipate"), targets)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=differentiable)
            weights = {name: w - rate * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
            if not differentiable:
                weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        return weights if differentiable else {name: w.detach() for name, w in weights.items()}
