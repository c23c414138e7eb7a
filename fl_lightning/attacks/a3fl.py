"""A3FL: a pixel trigger whose pattern is tuned every round to survive a server that would train it away.

H. Zhang, J. Jia, J. Chen, L. Lin, D. Wu, "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS 2023,
https://dl.acm.org/doi/10.5555/3666122.3668797. Defaults are those of the authors' code for CIFAR-10,
https://github.com/hfzhang31/A3FL.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Attacker
from fl_lightning.attacks.tuned_pattern import BOUND, TunedPattern
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


class A3FL(TunedPattern):
    """A backdoor that opens on a rectangle at a fixed place, with a pattern delta that attackers tune together.

    At the start of every round with malicious clients, before any of them trains, delta goes on from where it was, by

        minimise over delta: CE(theta; x + delta, target) + lambda * CE(theta'; x + delta, target)

    where x + delta is a picture with the pattern painted over it, theta is the global model, and theta' a copy of it that has
    been trained on x + delta under the true labels, as if somebody unlearned the backdoor. With the cosine similarity of the
    two vectors of parameters, lambda = `adversarial_weight` * cos(theta', theta). A step is

        delta <- clamp(delta - eta * sign(gradient))

    to the raw range of pixels; x are all clean samples of the round's malicious clients, batch by batch.

    Of a malicious client's samples, of whatever class, a random share then gets the pattern and the label `target_label`, the
    same samples in every round. ASR is measured on all test images whose true class is not `target_label`, with the pattern of
    the moment in them, which in a run without attackers stays a grey rectangle. It is painted on raw pixels after
    augmentation and before the data's `prepare`; where pixels are bytes it is tuned in floats and painted rounded.

    Every rank tunes the pattern for itself, to the same bits. This takes `trigger_epochs` * (2 + `adversarial_epochs` /
    `adversarial_every`) passes over the malicious clients' samples in each attacked round, forward and backward. By default
    these are 1,400; for trials, a `trigger_epochs` and an `adversarial_every` of 10 make it 25.

    Args:
        row: uppermost row, counted from 0 at the top.
        column: leftmost column, counted from 0 at the left.
        height: rows, at least 1.
        width: columns, at least 1.
        value_range: smallest and largest raw value that the pattern may take. None is 0 to 255 where pixels are bytes, else 0
            to 1. That of `Digits` is -0.3 to 0.7.
        target_label: the class that pictures with the pattern shall be taken for; 2 is "bird" in CIFAR-10.
        poison_fraction: share of an attacker's samples that is painted and relabelled, in (0, 1]; at least one sample is.
        per_batch: whether the share is one of every batch, not of the data set: the first int(share * b) of b samples, which a
            shuffle makes others in every pass, as published code has it. Batches of fewer than 1 / share samples have none.
        trigger_epochs: passes over the attackers' samples on which the pattern is tuned in a round, at least 1.
        trigger_lr: eta, more than 0, on the scale where raw pixels lie in [-2, 2]: 0.01 is 1/400 of `value_range`.
        adversarial_epochs: passes that theta' is trained for, at least 0.
        adversarial_every: passes of the pattern after which theta' is made anew from theta, at least 1.
        adversarial_lr: learning rate of theta', more than 0; by SGD with momentum .9 and weight decay 5e-4.
        adversarial_weight: lambda_0, at least 0; with 0 there is no theta'.
        batch_size: largest number of samples in a batch, at least 1; all batches of a pass have about the same.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, or the rectangle
            leaves them. In the first attacked round, if the client's `forward` gives no logits.

    Differs from the paper, as far as it could be told from the authors' code and others' accounts of it: all malicious clients
    of a round lend their samples, where the code takes those of the first; theta and theta' are in eval mode, where the code
    leaves theta' in training mode; lambda is computed from parameters, as in the paper, where the code averages the cosine
    similarities of the gradients of all convolutions; the code's first pass of a round has no theta'. The code bounds
    normalised pixels by -2 and 2, which is about the raw range, and paints the first quarter of every batch, which a shuffle
    makes different samples in every epoch. Attackers train as benign clients do, without label smoothing.

    Example:
        >>> attack = A3FL(poison_fraction=0.5)
        >>> data = TensorSamples(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 2, 3, 4]))
        >>> images, targets = attack.poison(data, Attacker(client=0, seed=0, pool=data)).batch(torch.arange(4))
        >>> int((targets == 2).sum()) >= 2, images.unique().tolist()  # before the first round, the pattern is grey
        (True, [0, 159])
    """

    purpose = "a3fl"

    def __init__(
        self,
        *,
        row: int = 2,
        column: int = 2,
        height: int = 5,
        width: int = 5,
        value_range: tuple[float, float] | None = None,
        target_label: int = 2,
        poison_fraction: float = 0.25,
        per_batch: bool = False,
        trigger_epochs: int = 200,
        trigger_lr: float = 0.01,
        adversarial_epochs: int = 5,
        adversarial_every: int = 1,
        adversarial_lr: float = 0.01,
        adversarial_weight: float = 0.01,
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            row=row,
            column=column,
            height=height,
            width=width,
            value_range=value_range,
            target_label=target_label,
            poison_fraction=poison_fraction,
            per_batch=per_batch,
        )
        for name, count, least in (
            ("trigger_epochs", trigger_epochs, 1),
            ("adversarial_epochs", adversarial_epochs, 0),
            ("adversarial_every", adversarial_every, 1),
            ("batch_size", batch_size, 1),
        ):
            if count < least:
                raise ConfigurationError(f"A3FL.{name} must be at least {least}, got {count}")
        for name, rate in (("trigger_lr", trigger_lr), ("adversarial_lr", adversarial_lr)):
            if not 0 < rate < math.inf:
                raise ConfigurationError(f"A3FL.{name} must be more than 0 and finite, got {rate}; 0.01 is the authors'")
        if not 0 <= adversarial_weight < math.inf:
            raise ConfigurationError(
                f"A3FL.adversarial_weight must be at least 0 and finite, got {adversarial_weight}; 0.01 is the authors'"
            )
        self.trigger_epochs = trigger_epochs
        self.trigger_lr = trigger_lr
        self.adversarial_epochs = adversarial_epochs
        self.adversarial_every = adversarial_every
        self.adversarial_lr = adversarial_lr
        self.adversarial_weight = adversarial_weight
        self.batch_size = batch_size

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        data, pattern, low, high = self._tunable(module, datasets)
        step = self.trigger_lr * (high - low) / (2 * BOUND)
        draws = attackers[0].generator(f"a3fl pattern, round {attackers[0].round_number}", shared=True)
        # A copy, as putting the module itself into eval mode and back may change what its parts were in.
        model = copy.deepcopy(module).eval().requires_grad_(False)
        adversary, weight = model, 0.0
        for epoch in range(self.trigger_epochs):
            if self.adversarial_weight and epoch % self.adversarial_every == 0:
                adversary = self._unlearned(module, data, pattern, draws)
                weight = self.adversarial_weight * similarity(adversary, model)
            for indices in self._batches(len(data), draws):
                pattern.requires_grad_()
                inputs = self._with_pattern(data, pattern).batch(indices, draws)[0]
                targets = torch.full((len(inputs),), self._target, device=inputs.device)
                loss = F.cross_entropy(class_logits(model, inputs, "A3FL"), targets)
                if weight:
                    loss = loss + weight * F.cross_entropy(class_logits(adversary, inputs, "A3FL"), targets)
                (gradient,) = torch.autograd.grad(loss, pattern)
                # Should theta' have diverged, there is no step, rather than a pattern that is not a number for good.
                pattern = (pattern.detach() - step * gradient.nan_to_num().sign()).clamp(low, high)
        self.pattern = pattern

    def _unlearned(self, module: nn.Module, data: TensorSamples, pattern: Tensor, draws: torch.Generator) -> nn.Module:
        """theta': the module after training on pictures with the pattern under their true labels."""
        model = copy.deepcopy(module).train()
        data = self._with_pattern(data, pattern.detach())
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.adversarial_lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for _ in range(self.adversarial_epochs):
            for indices in self._batches(len(data), draws):
                inputs, targets = data.batch(indices, draws)
                optimizer.zero_grad()
                F.cross_entropy(class_logits(model, inputs, "A3FL"), targets).backward()
                optimizer.step()
        return model.eval().requires_grad_(False)

    def _batches(self, n: int, draws: torch.Generator) -> Sequence[Tensor]:
        """One pass over n samples in random order; batches are even, as BatchNorm cannot train on a last single sample."""
        return torch.randperm(n, generator=draws).tensor_split(math.ceil(n / self.batch_size))


def similarity(one: nn.Module, other: nn.Module) -> float:
    """Cosine similarity of the parameters of two modules of the same kind, in [-1, 1]."""
    products = torch.zeros(3, dtype=torch.float64)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        p, q = p.detach().double().flatten(), q.detach().double().flatten()
        products += torch.stack([p @ q, p @ p, q @ q]).cpu()
    return float(products[0] / (products[1] * products[2]).sqrt().clamp(min=1e-12))
