"""IBA: a trigger that cannot be seen, made for each picture by a generator that attackers train against the global model.

D. T. Nguyen, T. A. Nguyen, A. Tran, K. D. Doan, K.-S. Wong, "IBA: Towards Irreversible Backdoor Attacks in Federated Learning",
NeurIPS 2023. Defaults are those of the authors' script for CIFAR-10, https://github.com/sail-research/iba.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fl_lightning.attacks.base import Attack, Attacker, Broadcast, draw_share
from fl_lightning.attacks.both_ways import BothWays
from fl_lightning.attacks.company import refuse
from fl_lightning.attacks.picture_trigger import images_for, one_raw, painted, raw_range, two_values, values_within
from fl_lightning.attacks.pixel_trigger import Rectangle
from fl_lightning.attacks.target_modes import TargetMode
from fl_lightning.attacks.trigger_generator import TriggerGenerator
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.in_tensors import in_tensors
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits, logits_with, pair_of
from fl_lightning.seeding import derive_seed

Network = Literal["unet", "autoencoder"]
Retrain = Literal["never", "alternate", "always"]

HELD_BACK = 0.2
"""Of the attackers' samples that are not of the target's class, for the ASR that they see."""

HALF = 0.5

FORM = Rectangle(0, 0, 1, 1, name="IBA")
"""What pictures must be able to hold."""

OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    "sgd": lambda parameters, lr: SGD(parameters, lr, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters, lr: Adam(parameters, lr),
}


class IBA(Attack):
    """A back door that opens on T(x) = clip(x + eps G(x)), with a network G whose output lies in (-1, 1).

    x is a raw picture on the scale where its range of values is [0, 1], and clip keeps it there. At the start of a round with
    malicious clients these train G together on the global model f, which stays as it is:

        minimise over G: CE(f(T(x)), target)

    over all clean samples of the round's malicious clients but a fifth of those that are not of the target's class. On that
    fifth they measure their own ASR. Until it has once been `start_asr`, they train on clean data alone; from that round on
    (phase 2) G is trained as `retrain` says, and a malicious client's step goes down, over the b samples of a batch,

        alpha CE(x, y) + (1 - alpha) CE(T(x), target)

    each of them in both terms, so that its module is given 2 b samples. In training eps falls from round to round, and never
    below the one of the test: max(`eps_test`, eps (1 - `eps_decay`)^(t - t_0)), with t_0 the first attacked round.

    ASR is measured on all test pictures whose true class is not `target_label`, with G of the moment and `eps_test`; before the
    first attacked round they are as they are. **The trigger is an adversarial example**: a model without any back door takes
    many of them for the target too, so ASR does not compare with that of a pixel trigger. With `alpha: 1` G is trained and
    nothing is poisoned, which gives the ASR to compare with.

    Every rank trains G for itself, to the same bits; checkpoints carry it. Put IBA where an attack that poisons data stands,
    and attack a model that has learned its task (`model.cohort.start_round`): one that takes everything for the target has the
    attackers poison at once, with a G that has learned nothing.
    With `alpha` other than 0.5 and 1 it goes down a loss of its own, and must come before others with one.

    Args:
        target_label: the class that pictures with the trigger shall be taken for; 1 is the authors'.
        alpha: weight of the clean samples, in (0, 1].
        eps: how much a pixel may change in training, as a share of the range of values, in (0, 1]. BackFed takes .3 or .06.
        eps_test: how much in the test, more than 0, at most `eps`. BackFed takes `eps`.
        eps_decay: in [0, 1); BackFed takes 0.
        start_asr: the attackers' own ASR from which on they poison, in [0, 1].
        retrain: in phase 2 G is trained in no attacked round (`never`), every second one (`alternate`), or all (`always`).
        network: G is a small U-Net (`unet`), as the authors' for CIFAR-10, or an auto-encoder, as theirs for MNIST.
        width: its maps at full size, at least 1.
        generator_optimizer: `sgd`, with momentum .9 and weight decay 1e-4, or `adam`, as BackFed has it.
        generator_lr: more than 0; BackFed takes 0.01.
        generator_epochs: passes over the samples in a round in which G is trained, at least 1; BackFed takes up to 100.
        stop_asr: the attackers' own ASR at which such a round ends after a pass, in (0, 1]; None for never. BackFed: .70.
        batch_size: largest number of samples in a batch of G's, at least 1; all batches of a pass have about the same.
        value_range: smallest and largest raw value of a pixel. None is 0 to 255 where pixels are bytes, else 0 to 1. That of
            `Digits` is -0.3 to 0.7.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, or have values
            out of `value_range`, or beside a second `IBA` or an attack with `per_batch`. In the first attacked round, if the
            client's `forward` gives no logits.

    Differs from the authors' code: it measures `start_asr` on test data; it clips normalised pixels, to the range of ImageNet's
    statistics; all malicious clients of a round lend their samples, where there one attacker has 1,000. Sizes of G are our own,
    as is that phase 2 begins in the round in which `start_asr` is reached. Only all classes to one.

    Example:
        >>> attack = IBA(target_label=2)
        >>> attack.eps_at(0), round(attack.eps_at(100), 4), attack.eps_at(5000)
        (0.3, 0.2714, 0.05)
    """

    def __init__(
        self,
        *,
        target_label: int = 1,
        alpha: float = 0.5,
        eps: float = 0.3,
        eps_test: float = 0.05,
        eps_decay: float = 0.001,
        start_asr: float = 0.85,
        retrain: Retrain = "never",
        network: Network = "unet",
        width: int = 16,
        generator_optimizer: Literal["sgd", "adam"] = "sgd",
        generator_lr: float = 1e-4,
        generator_epochs: int = 10,
        stop_asr: float | None = None,
        batch_size: int = 128,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        check_share("alpha", alpha, 0.5)
        check_share("eps", eps, 0.3)
        check_share("eps_test", eps_test, 0.05)
        if eps_test > eps:
            raise ConfigurationError(f"IBA.eps_test must be at most eps, which is {eps}, got {eps_test}")
        if not 0 <= eps_decay < 1:
            raise ConfigurationError(f"IBA.eps_decay must lie in [0, 1), got {eps_decay}; 0.001 is the authors'")
        if not 0 <= start_asr <= 1:
            raise ConfigurationError(f"IBA.start_asr must lie in [0, 1], got {start_asr}; 0.85 is the authors'")
        if stop_asr is not None:
            check_share("stop_asr", stop_asr, 0.7)
        for name, chosen, known in (
            ("retrain", retrain, get_args(Retrain)),
            ("network", network, get_args(Network)),
            ("generator_optimizer", generator_optimizer, tuple(OPTIMIZERS)),
        ):
            if chosen not in known:
                raise ConfigurationError(f"IBA.{name} must be one of {', '.join(known)}, got {chosen!r}")
        for name, count in (("width", width), ("generator_epochs", generator_epochs), ("batch_size", batch_size)):
            if count < 1:
                raise ConfigurationError(f"IBA.{name} must be at least 1, got {count}")
        if not 0 < generator_lr < math.inf:
            raise ConfigurationError(f"IBA.generator_lr must be more than 0 and finite, got {generator_lr}")
        self.target_label = self._target = target_label
        self._targets = TargetMode("all_to_one", target_label, None, "IBA")
        self.alpha = alpha
        self.eps, self.eps_test, self.eps_decay = eps, eps_test, eps_decay
        self.start_asr, self.stop_asr = start_asr, stop_asr
        self.retrain = retrain
        self.network, self.width = network, width
        self.generator_optimizer, self.generator_lr = generator_optimizer, generator_lr
        self.generator_epochs = generator_epochs
        self.batch_size = batch_size
        self.value_range = two_values("IBA.value_range", value_range)
        self.keeps_loss = alpha in (HALF, 1)  # the mean over both halves, or over clean samples alone, is the client's own
        self.replaces_loss = not self.keeps_loss
        self.generator: TriggerGenerator | None = None  # G, from the first attacked round on
        self.began: int | None = None  # t_0
        self.attacked = 0  # rounds
        self.poisons = False  # phase 2
        self._eps = eps  # of this round's training

    def meet(self, attacks: Sequence[Attack]) -> None:
        why = "each sample is in IBA's batches both ways, so no share of them can be poisoned; leave out the other's per_batch"
        others = [other for other in attacks if other is not self]
        refuse(self, others, lambda other: isinstance(other, IBA) or getattr(other, "per_batch", False), why)

    def validate(self, num_classes: int) -> None:
        self._targets.check(num_classes)

    # ---- data --------------------------------------------------------------------------------------------------------

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        data = images_for([FORM], dataset)
        if not self.poisons or self.alpha == 1 or not len(data):  # a colluder may have nothing left
            return data
        return BothWays(data, painted(data, [self.train_trigger], torch.arange(len(data)), self._targets.wanted(data.targets)))

    def stamp(self, test: Samples) -> Samples | None:
        data = images_for([FORM], test)
        data = data.subset(self._targets.attacked(data.targets))
        if not len(data):
            return None
        self._check_range(data)
        return painted(data, [self.test_trigger], torch.arange(len(data)), self._targets.wanted(data.targets))

    def train_trigger(self, images: Tensor) -> Tensor:
        """T with the eps of this round's training."""
        return self._triggered(images, self._eps)

    def test_trigger(self, images: Tensor) -> Tensor:
        """T with the eps of the test."""
        return self._triggered(images, self.eps_test)

    def _triggered(self, images: Tensor, eps: float) -> Tensor:
        """Raw images (b, C, H, W) with the trigger of G as it is now."""
        if self.generator is None:
            return images
        if next(self.generator.parameters()).device != images.device:
            with torch.inference_mode(False):  # evaluation may ask first, but G is trained further
                self.generator.to(images.device)
        with torch.no_grad():
            changed = self._transform(images.float(), eps, *self._range(images))
        return changed.to(images.dtype) if images.is_floating_point() else changed.round().to(images.dtype)

    def _transform(self, images: Tensor, eps: float, low: float, high: float) -> Tensor:
        """T of raw images (b, C, H, W) in floats; gradients pass to G."""
        assert self.generator is not None
        unit = (images - low) / (high - low)
        return (unit + eps * self.generator(unit)).clamp(0, 1) * (high - low) + low

    def _range(self, images: Tensor) -> tuple[float, float]:
        """Smallest and largest raw value."""
        return values_within("IBA.value_range", self.value_range, images)

    def _check_range(self, data: Samples) -> None:
        images, found = one_raw(data), raw_range(data)
        if images is None:
            return
        low, high = self._range(images)
        if found is None:
            return
        least, most = found
        tolerance = 1e-3 * (high - low)
        if least < low - tolerance or most > high + tolerance:
            raise ConfigurationError(
                f"IBA.value_range is {[low, high]}, but raw pixels of the test images lie between {least:.3g} and {most:.3g}, "
                "and would be clipped; set it to what pixels can be"
            )

    # ---- the attackers' loss -----------------------------------------------------------------------------------------

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        if not self.poisons or self.keeps_loss:
            return loss
        inputs, targets = pair_of(batch, "IBA")
        each = F.cross_entropy(logits_with(module, {}, inputs, "IBA"), targets, reduction="none")
        clean, stamped = each.chunk(2)
        return self.alpha * clean.mean() + (1 - self.alpha) * stamped.mean()

    # ---- the generator -----------------------------------------------------------------------------------------------

    def eps_at(self, rounds: int) -> float:
        """eps so many rounds after the first attacked one."""
        return max(self.eps_test, self.eps * (1 - self.eps_decay) ** rounds)

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        t = attackers[0].round_number
        self.began = t if self.began is None else self.began
        self._eps = self.eps_at(t - self.began)
        again = {"never": False, "alternate": self.attacked % 2 == 0, "always": True}[self.retrain]
        self.attacked += 1
        if self.poisons and not again:
            return
        data = in_tensors(images_for([FORM], join(datasets)), "IBA trains its generator on them again and again")
        data = data.to(next(module.parameters()).device)
        own_asr = self._train_generator(module, data, attackers[0])
        self.poisons = self.poisons or own_asr >= self.start_asr

    def _train_generator(self, module: nn.Module, data: TensorSamples, attacker: Attacker) -> float:
        """Train G on a round's global model.

        Returns:
            The ASR on what was held back; 0 where all samples are of the target's class.
        """
        draws = attacker.generator(f"iba generator, round {attacker.round_number}", shared=True)
        low, high = self._range(data.inputs)
        data = data.with_inputs(data.inputs.float())  # a byte has no gradient
        if self.generator is None:
            self.generator = self._fresh(data.inputs.shape[1], attacker.seed).to(data.inputs.device)
        # A copy, as putting the module itself into eval mode and back may change what its parts were in.
        model = copy.deepcopy(module).eval().requires_grad_(False)
        others = torch.nonzero(data.targets != self._target).flatten()
        held = others[draw_share(len(others), HELD_BACK, draws).to(others.device)]
        kept = torch.ones(len(data), dtype=torch.bool, device=others.device).index_fill(0, held, False)
        rows = torch.nonzero(kept).flatten()
        every = torch.ones_like(kept)
        stamped = data.stamped(partial(self._transform, eps=self._eps, low=low, high=high), every)
        parameters = list(self.generator.parameters())
        optimizer = OPTIMIZERS[self.generator_optimizer](parameters, self.generator_lr)
        for _ in range(self.generator_epochs):
            for indices in self._batches(rows, draws):
                inputs = stamped.batch(indices, draws)[0]
                targets = torch.full((len(inputs),), self._target, device=inputs.device)
                loss = F.cross_entropy(class_logits(model, inputs, "IBA"), targets)
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    # A model that has gone astray must not make G not a number for good.
                    parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
                optimizer.step()
            if self.stop_asr is not None and self._own_asr(model, stamped, held) >= self.stop_asr:
                break
        optimizer.zero_grad()
        return self._own_asr(model, stamped, held)

    @torch.no_grad()
    def _own_asr(self, model: nn.Module, stamped: Samples, held: Tensor) -> float:
        """The share of these samples that a model takes for the target."""
        if not len(held):
            return 0.0
        hits = [
            (class_logits(model, stamped.batch(rows)[0], "IBA").argmax(1) == self._target).double()
            for rows in held.split(self.batch_size)
        ]
        return float(torch.cat(hits).mean())

    def _batches(self, rows: Tensor, draws: torch.Generator) -> Iterator[Tensor]:
        """One pass over these samples in random order."""
        order = torch.randperm(len(rows), generator=draws).to(rows.device)
        yield from rows[order].tensor_split(max(1, math.ceil(len(rows) / self.batch_size)))

    def _fresh(self, channels: int, seed: int) -> TriggerGenerator:
        """G as it begins."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "iba generator"))
            return TriggerGenerator(channels, width=self.width, across=self.network == "unet")

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        weights = None if self.generator is None else dict(self.generator.state_dict())
        channels = 0 if self.generator is None else self.generator.channels
        known = {"began": self.began, "attacked": self.attacked, "poisons": self.poisons}
        return {"generator": weights, "channels": channels, **known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights: Mapping[str, Tensor] | None = state["generator"]
        self.generator = None
        if weights is not None:
            self.generator = self._fresh(state["channels"], 0)
            self.generator.load_state_dict(weights)
        self.began, self.attacked, self.poisons = state["began"], state["attacked"], state["poisons"]


def check_share(name: str, share: float, usual: float) -> None:
    """Raise `ConfigurationError` unless this lies in (0, 1]."""
    if not 0 < share <= 1:
        raise ConfigurationError(f"IBA.{name} must be more than 0 and at most 1, got {share}; {usual:.3g} is usual")
