"""3DFed: attackers hide one back door under noise and behind decoys, and see by planted values whether it was taken.

H. Li, Q. Ye, H. Hu, J. Li, L. Wang, C. Fang, J. Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in
Federated Learning", IEEE S&P 2023. Defaults are those of the authors' code for CIFAR-10,
https://github.com/haoyangliASTAPLE/3DFed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Broadcast, Knowledge, has_own
from fl_lightning.attacks.collude import Collude
from fl_lightning.attacks.company import after, before, pairs, poisoned_by, refuse
from fl_lightning.attacks.constrain_and_scale import ConstrainAndScale
from fl_lightning.attacks.crafted import uniform
from fl_lightning.attacks.feedback import Feedback, Indicator
from fl_lightning.attacks.noise_masks import noise_masks
from fl_lightning.attacks.poisoning import pooled
from fl_lightning.data.base import Samples
from fl_lightning.data.outcomes import Classes
from fl_lightning.errors import ConfigurationError, enumerated
from fl_lightning.modules.outputs import class_logits
from fl_lightning.seeding import generator
from fl_lightning.updates.entries import add_to_tensor, entries, of_tensor
from fl_lightning.updates.layers import Layer, output_layer
from fl_lightning.updates.shard import UpdateShard

NOISY_NEURONS = 5
CANDIDATES = 10
"""Per indicator: entries that hardly move, of which those with the least curvature are taken."""

PLANTED_FOR_ZERO = 1e-3


class ThreeDFed(Collude):
    """One back door in all names, trained near the global model, under noise, with decoys and indicators.

    In a round with f attackers:

    1. They put their poisoned data together and one trains on all of it, on (1 - a) L + a ||w - w_G||, with a the
       `distance_weight`; where half of the samples are poisoned and a = .4, that is .3 clean + .3 stamped + .4 distance. Each
       also trains on its own clean data.
    2. The back door's update is scaled up to the mean norm of these benign ones, but not down, and by `max_scale` at most.
    3. k of the attackers, the last ones, send decoys: their own benign update, where the output weight at which back door and
       benign update differ least is pushed away, by `push` l / k for the l-th decoy.
    4. The others send the back door, in groups of `group_size`, under noise on the output layer: see `noise_masks`.
    5. Every one of the f plants an indicator in the tensor `tensor`: of the 10 f entries with the least |back door| + |benign|
       those f with the least |curvature| (of the loss on the attackers' data, at w_G: the gradient of the gradient's sum). It
       multiplies its update there by `indicator_scale`, or sets it to .001 where it is 0.
    6. In the next round, if attackers are there, they read by how much the model moved at these entries, and so who was
       accepted, clipped or rejected; that sets k and how the noise is traded off: see `Feedback`. A share above 1 or below 0
       tells of added noise; then nothing is read any more and alpha is .1. That is the published test, and it errs: where
       benign clients move a marked entry by more than 1e-5 of what was planted, a plain rejection is taken for noise.

    Put it after an attack that poisons data, best with half of every batch (`poison_fraction: 0.5, per_batch: true`). Nothing
    after it may rewrite updates, or what it reads is not what it planted. `PGD`, `ConstrainAndScale` and `Collude` before it
    are taken as they are.

    Args:
        distance_weight: a, in [0, 1).
        max_scale: at least 1.
        decoys: k in the first round, at least 0; f - 1 at most are sent.
        push: finite; 0 for decoys that are benign.
        group_size: at least 1; a group of one has no noise.
        indicator_scale: more than 1. The authors' 100,000 are for tensors of millions of entries, whose least are that small;
            what is planted should be about as large as other entries.
        tensor: where indicators stand, a parameter's name; left out, the last of the largest before the output layer.
        output: the layer that gives the logits, such as `net.4`; left out, the model's last two parameter tensors.
        batch_size: of the passes for the curvature, at least 1.

    Raises:
        ConfigurationError: before training, if an attack after it rewrites updates, or the model has no such tensors. In the
            first attacked round, if `forward` gives no logits, or its layers have no second derivative.

    Every rank finds curvature and noise for itself, to the same bits; one pass over the attackers' samples, forward and twice
    backward. Where the attackers' update is not finite, or no benign one is, they send the back door as it is.

    Differs from the authors' code: decoys are sent by k of the f attackers, where theirs are k clients more; curvature is that
    at the global model; groups share the neurons that get noise, which are random and never the target's. How noise begins,
    how alphas are drawn around accepted ones and how decoys are spread is not known for sure. The authors' own copies of
    defences are at fault in several places, so that their figures do not compare.

    Example:
        >>> attack = ThreeDFed(indicator_scale=100.0)
        >>> attack.feedback.decoys, attack.distance_weight
        (0, 0.4)
    """

    watches_steps = True
    outcomes = (Classes,)

    def __init__(
        self,
        *,
        distance_weight: float = 0.4,
        max_scale: float = 5.0,
        decoys: int = 0,
        push: float = 10.0,
        group_size: int = 5,
        indicator_scale: float = 1e5,
        tensor: str | None = None,
        output: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(mode="pool")
        if not 0 <= distance_weight < 1:
            raise ConfigurationError(f"ThreeDFed.distance_weight must lie in [0, 1), got {distance_weight}")
        if not 1 <= max_scale < math.inf:
            raise ConfigurationError(f"ThreeDFed.max_scale must be at least 1 and finite, got {max_scale}")
        if not 1 < indicator_scale < math.inf:
            raise ConfigurationError(f"ThreeDFed.indicator_scale must be more than 1 and finite, got {indicator_scale}")
        if not math.isfinite(push):
            raise ConfigurationError(f"ThreeDFed.push must be finite, got {push}")
        for name, count, least in (("decoys", decoys, 0), ("group_size", group_size, 1), ("batch_size", batch_size, 1)):
            if count < least:
                raise ConfigurationError(f"ThreeDFed.{name} must be at least {least}, got {count}")
        self.distance_weight = distance_weight
        self.max_scale = max_scale
        self.push = push
        self.group_size = group_size
        self.indicator_scale = indicator_scale
        self.tensor = tensor
        self.output = output
        self.batch_size = batch_size
        self.feedback = Feedback(decoys=decoys)
        self.near = ConstrainAndScale(alpha=1 - distance_weight, distance="l2")
        self.before: list[Attack] = []
        self.target: int | None = None  # of the back door, where an attack before this one has one
        self.marked: Layer | None = None  # where indicators stand
        self.curvature: Tensor | None = None  # of that tensor, in this round

    def meet(self, attacks: Sequence[Attack]) -> None:
        self.before = before(self, attacks)
        why = "what attackers plant must be what they send, or they read it wrongly; put ThreeDFed last of those"
        refuse(self, after(self, attacks), lambda other: has_own(other, "corrupt"), why)
        self.target = next((of.target_label for of in self.before if isinstance(of.target_label, int)), None)

    def check_model(self, layers: Sequence[Layer]) -> None:
        weight, _ = output_layer(layers, "ThreeDFed", self.output)
        inner = [layer for layer in layers if len(layer.shape) > 1 and layer.name != weight.name]
        if self.tensor is not None:
            inner = [layer for layer in inner if layer.name == self.tensor]
        if not inner:
            raise ConfigurationError(
                f"ThreeDFed plants values in {self.tensor or 'a weight'} before the output layer, but the model's tensors are "
                f"{enumerated(layer.name or 'unnamed' for layer in layers)}; set ThreeDFed.tensor to one of these with two "
                "axes or more, or use a deeper model"
            )
        largest = max(layer.size for layer in inner)
        self.marked = [layer for layer in inner if layer.size == largest][-1]

    # ---- training ----------------------------------------------------------------------------------------------------

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        assert self.marked is not None, "check_model comes first"
        samples = pooled(poisoned_by(self.before, datasets, attackers))
        model = copy.deepcopy(module).eval()
        tensor = dict(model.named_parameters())[self.marked.name]
        total = torch.zeros_like(tensor)
        for inputs, targets in pairs(samples, self.batch_size, None, tensor.device, "ThreeDFed"):
            loss = F.cross_entropy(class_logits(model, inputs, "ThreeDFed"), targets) * (len(targets) / len(samples))
            try:
                (gradient,) = torch.autograd.grad(loss, tensor, create_graph=True, materialize_grads=True)
                (curvature,) = torch.autograd.grad(gradient.sum(), tensor, materialize_grads=True)
            except RuntimeError as error:
                raise ConfigurationError(
                    f"ThreeDFed takes the second derivative of the loss by {self.marked.name}, which {type(module).__name__} "
                    f"does not have ({str(error).splitlines()[0]}); set ThreeDFed.tensor to another one, or leave the attack "
                    "out"
                ) from error
            total += curvature
        self.curvature = total.detach().flatten()

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        return list(datasets)

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        return self.near.loss(module, batch, loss, broadcast)

    # ---- what is sent ------------------------------------------------------------------------------------------------

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        super().corrupt(shard, knowledge)  # one back door in all names
        draws = generator(shard.seed, "attack: 3dfed", shard.round_number)
        self.read(shard, knowledge, draws)
        senders = torch.nonzero(shard.malicious).flatten().tolist()
        honest = knowledge.rehearsed
        assert honest is not None, "the attack has asked for rehearsals"
        finite = honest.finite_rows()
        if not finite.any() or not shard.finite_rows()[senders[0]]:
            return
        scale = honest.norms()[finite.cpu()].mean() / shard.norms()[senders[0]].clamp(min=1e-12)
        backdoor = shard.row(senders[0]) * float(scale.clamp(1.0, self.max_scale))
        benign = honest.combine(uniform(finite))
        places = self.places(shard, backdoor, benign, len(senders))
        sent = self.sent(shard, backdoor, [row_or(honest, j, finite, benign) for j in range(len(senders))], draws)
        planted = []
        for i, place, (vector, group) in zip(senders, places.tolist(), sent, strict=True):
            value = float(entries(shard, vector, torch.tensor([place]))) * self.indicator_scale or PLANTED_FOR_ZERO
            if shard.start <= place < shard.start + shard.width:
                vector[place - shard.start] = value
            row = torch.zeros_like(shard.malicious)
            row[i] = True
            shard.rewrite(row, lambda _, v: v, vector)
            planted.append(Indicator(place, float(entries(shard, vector, torch.tensor([place]))), group))
        self.feedback.planted, self.feedback.round_number = planted, shard.round_number

    def read(self, shard: UpdateShard, knowledge: Knowledge, draws: torch.Generator) -> None:
        """See what became of the indicators of the round before, if this one attacked in it."""
        told = self.feedback
        if told.weak_dp or not told.planted or told.round_number != shard.round_number - 1:
            return
        assert knowledge.last_step is not None, "watches_steps is true"
        places = torch.tensor([indicator.coordinate for indicator in told.planted])
        told.learn(entries(shard, knowledge.last_step, places), draws)

    def places(self, shard: UpdateShard, backdoor: Tensor, benign: Tensor, f: int) -> Tensor:
        """(f,) int64, the coordinates of the indicators."""
        layer, curvature = self.marked, self.curvature
        assert layer is not None, "check_model comes first"
        assert curvature is not None, "plan comes first"
        quiet = (of_tensor(shard, backdoor, layer).abs() + of_tensor(shard, benign, layer).abs()).flatten()
        candidates = quiet.argsort(stable=True)[: CANDIDATES * f]
        flattest = curvature.to(candidates.device)[candidates].abs().argsort(stable=True)
        chosen = candidates[flattest].cpu()
        return layer.start + chosen[torch.arange(f) % len(chosen)]  # a tensor of fewer entries holds several

    def sent(
        self, shard: UpdateShard, backdoor: Tensor, benign: list[Tensor], draws: torch.Generator
    ) -> Iterator[tuple[Tensor, int]]:
        """Each attacker's update (S,), and its group; -1 for a decoy.

        Args:
            shard: of the round.
            backdoor: (S,) scaled.
            benign: (S,) of each attacker.
            draws: the same on every rank.
        """
        weight, bias = output_layer(shard.layers, "ThreeDFed", self.output)
        f, k = len(benign), min(self.feedback.decoys, len(benign) - 1)
        update = torch.cat([of_tensor(shard, backdoor, part).flatten(1) for part in (weight, bias_column(bias))], dim=1)
        for first in range(0, f - k, self.group_size):
            members, group = min(self.group_size, f - k - first), first // self.group_size
            alpha, neurons = self.feedback.alpha(group, draws), self.neurons(len(update), draws)
            for mask in noise_masks(update, members, alpha, neurons, draws):
                vector = backdoor.clone()
                add_to_tensor(shard, vector, weight, mask[:, :-1])
                add_to_tensor(shard, vector, bias, mask[:, -1])
                yield vector, group
        for number, own in enumerate(benign[f - k :], start=1):
            apart = (of_tensor(shard, backdoor, weight) - of_tensor(shard, own, weight)).abs().flatten()
            pushed = torch.zeros_like(apart)
            pushed[apart.argsort(stable=True)[0]] = self.push * number / k
            vector = own.clone()
            add_to_tensor(shard, vector, weight, pushed)
            yield vector, -1

    def neurons(self, num_classes: int, draws: torch.Generator) -> Tensor:
        """(k,) int64, up to five random output neurons, never the target's."""
        order = torch.randperm(num_classes, generator=draws)
        return order[order != (-1 if self.target is None else self.target)][:NOISY_NEURONS]

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"feedback": self.feedback.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.feedback = Feedback.from_dict(state["feedback"])


def bias_column(bias: Layer) -> Layer:
    """The same coordinates as a matrix of one column."""
    return bias._replace(shape=(*bias.shape, 1))


def row_or(honest: UpdateShard, j: int, finite: Tensor, otherwise: Tensor) -> Tensor:
    """(S,) the j-th honest update, or another one where that is not finite."""
    return honest.row(j) if finite[j] else otherwise
