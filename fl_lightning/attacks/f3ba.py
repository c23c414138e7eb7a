"""F3BA: attackers flip signs of a few unimportant weights so that their trigger excites the network, then train from there.

P. Fang, J. Chen, "On the Vulnerability of Backdoor Defenses for Federated Learning", AAAI 2023,
https://arxiv.org/abs/2301.08170. Defaults are those of the authors' code,
https://github.com/jinghuichen/Focused-Flip-Federated-Backdoor-Attack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fl_lightning.attacks.base import Attacker, Broadcast
from fl_lightning.attacks.company import divided
from fl_lightning.attacks.focused_flips import flipped, flipped_to_pattern, lowest, mean_difference, weight_layers
from fl_lightning.attacks.tuned_pattern import TunedPattern
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.layers import Layer


class F3BA(TunedPattern):
    """A trigger on a rectangle, and focused flips of signs of weights that answer to it.

    In every attacked round, before clients train, the attackers lend a share of their samples and

    1. tune the pattern p on them: `trigger_passes` passes of ascent on the mean norm of h(x with p) - h(x), with h what the
       first layer gives, p <- clamp(p + trigger_lr * gradient) to the raw range of pixels;
    2. rank the weights of every layer by s = (w_t - w_{t-1}) * w_t, the least important first: those that the last global step
       moved towards zero. The share `conv_rate` of a convolution, `fc_rate` of a linear layer with the lowest s are candidates;
    3. flip, from the first layer to the last but one, each seeing what those before it now give. A candidate weight keeps its
       magnitude and takes the sign of a pattern: for a convolution p, or for later ones the mean difference of its inputs with
       and without p, brought to the kernel's size, and for each filter to the range of its weights; for a linear layer the mean
       difference of its inputs, in every `fc_every`-th attacked round.

    Malicious clients train from these weights, on the rest of their samples. With the share r that is painted, their loss is
    (1 - r) of the clean samples' and r of the painted ones'. Their updates hold the flips, g = 2 w for each, which is large.
    In the first round of a run nothing has moved, so nothing is flipped. Linear and 2d convolutional layers are flipped, of
    which the last one in the network, that of the logits, is left alone.

    Every rank tunes the pattern for itself, to the same bits. ASR is measured with the pattern of the moment. Composes with
    `PGD`, `Collude`, `ConstrainAndScale` (`distance: cosine` is the authors' option against Bulyan) and
    `BackdoorCriticalLayers`.

    Args:
        row: uppermost row, counted from 0 at the top.
        column: leftmost column, counted from 0 at the left.
        height: rows, at least 1.
        width: columns, at least 1.
        value_range: smallest and largest raw value that the pattern may take. None is 0 to 255 where pixels are bytes, else 0
            to 1. That of `Digits` is -0.3 to 0.7.
        target_label: the class that pictures with the pattern shall be taken for.
        poison_fraction: r, in (0, 1].
        per_batch: whether r is a share of every batch, not of the data set: the first int(r * b) of b samples, which a shuffle
            makes others in every pass. Batches of fewer than 1 / r samples have none.
        conv_rate: share of a convolution's weights that are candidates, in (0, 1); at least one is.
        fc_rate: that of a linear layer's.
        fc_every: attacked rounds from one flip of linear layers to the next, at least 1; the first is the `fc_every`-th.
        lent: share of an attacker's samples that pattern and flips are found on, in (0, 1); it does not train on these.
        trigger_passes: passes over them, at least 1.
        trigger_lr: more than 0, on the scale where raw pixels lie in [0, 1].
        batch_size: largest number of samples in a batch of these passes, at least 1.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, the rectangle
            leaves them, or the model has fewer than two weights of linear or 2d convolutional layers.

    Differs from the authors' code: w_{t-1} is the global model of the round before, where theirs is that of the attacker's last
    turn; all malicious clients of a round lend their samples and flip the same; painted samples take the place of clean ones,
    where theirs enter both terms of the loss. The ascent's loss, the pattern's first value and the order of edits and training
    are not known for sure: the norm, a grey patch, and flips first are taken.

    A reader may look for flipped signs in updates: it is weights whose signs are flipped.

    Example:
        >>> attack = F3BA(height=2, width=2, value_range=(-0.3, 0.7), poison_fraction=0.5, lent=0.5)
        >>> data = TensorSamples(torch.zeros(8, 1, 8, 8), torch.arange(8))
        >>> len(attack.poison(data, Attacker(client=0, seed=0, pool=data)))  # the others tune the pattern
        4
    """

    purpose = "f3ba"
    usual_fraction = 0.4
    watches_steps = True

    def __init__(
        self,
        *,
        row: int = 2,
        column: int = 2,
        height: int = 5,
        width: int = 5,
        value_range: tuple[float, float] | None = None,
        target_label: int = 8,
        poison_fraction: float = 0.4,
        per_batch: bool = True,
        conv_rate: float = 0.02,
        fc_rate: float = 0.001,
        fc_every: int = 3,
        lent: float = 0.2,
        trigger_passes: int = 2,
        trigger_lr: float = 0.1,
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
        for name, share in (("conv_rate", conv_rate), ("fc_rate", fc_rate), ("lent", lent)):
            if not 0 < share < 1:
                raise ConfigurationError(f"F3BA.{name} must lie in (0, 1), got {share}")
        for name, count in (("fc_every", fc_every), ("trigger_passes", trigger_passes), ("batch_size", batch_size)):
            if count < 1:
                raise ConfigurationError(f"F3BA.{name} must be at least 1, got {count}")
        if not 0 < trigger_lr < math.inf:
            raise ConfigurationError(f"F3BA.trigger_lr must be more than 0 and finite, got {trigger_lr}; 0.1 is the authors'")
        self.conv_rate = conv_rate
        self.fc_rate = fc_rate
        self.fc_every = fc_every
        self.lent = lent
        self.trigger_passes = trigger_passes
        self.trigger_lr = trigger_lr
        self.batch_size = batch_size
        self.turns = 0  # attacked rounds so far
        self._lent: TensorSamples | None = None  # of this round
        self._start: tuple[Broadcast, dict[str, Tensor]] | None = None  # what clients of a round start from, where it differs

    def check_model(self, layers: Sequence[Layer]) -> None:
        weights = [layer.name for layer in layers if len(layer.shape) in (2, 4)]
        if len(weights) < 2:
            raise ConfigurationError(
                "F3BA flips weights of linear and 2d convolutional layers before the last one, but the model has only "
                f"{', '.join(weights) or 'none'} of this kind; use a deeper model, or another attack, such as A3FL"
            )

    # ---- data --------------------------------------------------------------------------------------------------------

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        return super().poison(self._divided(dataset, attacker)[0], attacker)

    def _divided(self, dataset: Samples, attacker: Attacker) -> tuple[Samples, Samples]:
        """What a client trains on, and what it lends; the same in every round."""
        return divided(dataset, self.lent, attacker.generator("f3ba: lent"))

    # ---- the pattern -------------------------------------------------------------------------------------------------

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        self.turns += 1
        lent = [self._divided(dataset, attacker)[1] for dataset, attacker in zip(datasets, attackers, strict=True)]
        lent = [samples for samples in lent if len(samples)] or list(datasets)
        data, pattern, low, high = self._tunable(module, lent)
        self._lent, self._start = data, None
        model = copy.deepcopy(module).eval().requires_grad_(False)
        first = weight_layers(model, data.batch(torch.arange(1))[0], self.name)[0][1]
        draws = attackers[0].generator(f"f3ba pattern, round {attackers[0].round_number}", shared=True)
        step = self.trigger_lr * (high - low) ** 2  # of raw values, whose gradient is 1 / (high - low) of that on [0, 1]
        for _ in range(self.trigger_passes):
            order = torch.randperm(len(data), generator=draws)
            for indices in order.tensor_split(math.ceil(len(data) / self.batch_size)):
                pattern.requires_grad_()
                with_pattern = self._with_pattern(data, pattern).batch(indices)[0]
                excited = outputs(model, first, with_pattern) - outputs(model, first, data.batch(indices)[0])
                length = torch.linalg.vector_norm(excited.flatten(1), dim=1).mean()
                (gradient,) = torch.autograd.grad(length, pattern)
                # A network of infinite weights has no gradient: then there is no step.
                pattern = (pattern.detach() + step * gradient.nan_to_num(0.0, 0.0, 0.0)).clamp(low, high)
        self.pattern = pattern

    # ---- the flips ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, module: nn.Module, broadcast: Broadcast) -> None:
        if self._start is None or self._start[0] is not broadcast:
            self._start = broadcast, self.flip(module, broadcast)
        own = dict(module.named_parameters())
        for name, weights in self._start[1].items():
            own[name].copy_(weights)

    def flip(self, module: nn.Module, broadcast: Broadcast) -> dict[str, Tensor]:
        """The weights of this round that malicious clients start from, by name, where they are not the broadcast's.

        Args:
            module: with the broadcast weights; left as it is.
            broadcast: with the last step.
        """
        assert broadcast.last_step is not None, "watches_steps is true"
        assert self._lent is not None, "plan comes first"
        assert self.pattern is not None, "plan comes first"
        if not broadcast.last_step.any():
            return {}
        model = copy.deepcopy(module).eval().requires_grad_(False)
        clean, batches = self._lent, torch.arange(len(self._lent)).split(self.batch_size)
        stamped = self._with_pattern(clean, self.pattern.to(clean.inputs.device))
        scores = importance(module, broadcast)
        found: dict[str, Tensor] = {}
        layers = weight_layers(model, clean.batch(torch.arange(1))[0], self.name)
        for number, (name, layer) in enumerate(layers[:-1]):
            if name not in scores or (isinstance(layer, nn.Linear) and self.turns % self.fc_every):
                continue
            candidates = lowest(scores[name], self.fc_rate if isinstance(layer, nn.Linear) else self.conv_rate)
            channels = layer.in_channels if isinstance(layer, nn.Conv2d) else 0
            if number == 0 and channels == len(self.pattern):
                difference = self.pattern.to(layer.weight.device)
            else:
                difference = mean_difference(model, layer, ((stamped.batch(i)[0], clean.batch(i)[0]) for i in batches))
            if isinstance(layer, nn.Conv2d):
                found[name] = flipped_to_pattern(layer.weight, candidates, difference, layer.groups)
            else:
                found[name] = flipped(layer.weight, candidates, difference.sign().expand_as(layer.weight))
            layer.weight.copy_(found[name])
        return found

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "turns": self.turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.turns = state["turns"]


def outputs(model: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer of the model gives, (b, ...), where it is first called."""
    seen: list[Tensor] = []

    def note(*called: Any) -> None:
        seen.append(called[-1])

    handle = layer.register_forward_hook(note)
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0]


def importance(module: nn.Module, broadcast: Broadcast) -> dict[str, Tensor]:
    """s = (w_t - w_{t-1}) * w_t of every trainable tensor by its name; `last_step` is old minus new.

    >>> layer = nn.Linear(4, 1, bias=False)
    >>> w_t, w_before = torch.tensor([0.5, -0.4, 0.3, -0.2]), torch.tensor([0.6, -0.5, 0.1, -0.2])
    >>> importance(layer, Broadcast(weights=w_t, last_step=w_before - w_t))["weight"]
    tensor([[-0.0500, -0.0400,  0.0600,  0.0000]])
    """
    assert broadcast.last_step is not None
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    scores = (-broadcast.last_step * broadcast.weights).split([parameter.numel() for _, parameter in named])
    return {name: of.view(parameter.shape) for (name, parameter), of in zip(named, scores, strict=True)}
