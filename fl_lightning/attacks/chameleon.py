"""Chameleon: attackers first move the features of their poisoned samples, then train the classifier alone.

Y. Dai, S. Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated Learning", ICML 2023,
https://arxiv.org/abs/2304.12961; the loss is that of P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020,
https://arxiv.org/abs/2004.11362. Defaults are those of the authors' code for a pixel trigger on CIFAR-10,
https://github.com/ybdai7/Chameleon-durable-backdoor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from fl_lightning.attacks.base import Attack, Attacker, Broadcast, Stage, check_label
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.output_module import output_module
from fl_lightning.modules.predicting import predict
from fl_lightning.modules.undisturbed import undisturbed


class Chameleon(Attack):
    """Malicious clients train the encoder by a contrastive loss, and then the output layer by their own loss.

    The encoder is all of the network but its last linear layer, and z_i its output for sample i of a batch, divided by its
    norm. Poisoned samples carry the target's label, so that the loss pulls them to the target's clean samples, their
    "facilitators", which benign clients go on learning, and away from the class that they were of. With P(i) the other samples
    of i's label in the batch, and c_i = `scale` where that is the target and 1 elsewhere,

        l_i = -c_i / |P(i)| * sum over p in P(i) of ( z_i . z_p / T - log sum over a != i of exp(z_i . z_a / T) )

    A sample without others of its label counts 0, and the loss is the mean over the batch.

    | stage | trains | goes down | SGD |
    | --- | --- | --- | --- |
    | 1 | the encoder | the mean of l_i | `encoder_epochs`, `encoder_lr`, `encoder_milestones`, `encoder_decay` |
    | 2 | the output layer | the client's own loss | `classifier_epochs`, `classifier_lr`, and so on |

    Put it after an attack that poisons data, and before others with a loss of their own, such as `ConstrainAndScale`, whose
    distance is added in both stages. `PGD` holds in both. BatchNorm is in training mode in both, and its statistics move. It
    has epochs and an optimizer of its own, so no recipe of the attackers' (`model.attackers`) can have these; a batch size, a
    precision and a clipping it can. The default rates are low: where benign clients train at many times these, no back door is
    written, and theirs is the one to take. A batch must be large enough to hold poisoned samples beside clean ones of the
    target.

    Args:
        target_label: the class that the poisoned samples are labelled as.
        scale: c, more than 0; 1 is plain supervised contrastive learning. BackFed takes 2.
        temperature: T, more than 0.
        encoder_epochs: passes over the client's data in stage 1, more than 0.
        encoder_lr: its learning rate, more than 0; BackFed takes 0.015.
        encoder_milestones: passes after which that is multiplied by `encoder_decay`.
        encoder_decay: more than 0, at most 1; BackFed takes 0.3.
        classifier_epochs: passes in stage 2, more than 0; BackFed takes 6.
        classifier_lr: more than 0; BackFed takes 0.05.
        classifier_milestones: as in stage 1.
        classifier_decay: as in stage 1; BackFed takes 0.1.
        momentum: of both optimizers, which begin anew, in [0, 1).
        weight_decay: of both, at least 0.
        output_layer: the name of the last linear layer in the client, such as `classifier.2`; None takes the one whose
            parameters are the model's last.

    Raises:
        ConfigurationError: before training, if the client has no such layer, or nothing that is trained has a say in what it
            is given; in the first attacked round, if batches are not (inputs, targets).

    Differs from the authors' code: its scheduler steps before a pass, so that its milestones 3, 5, 7, 9 are 2, 4, 6, 8 here,
    and its 3 and 5 are 2 and 4; features are normalised, as BackFed's are; a factor between poisoned samples and their
    original class, 1 by default there, is left out; staying within a ball, which its configuration does with a radius of 5, is
    `PGD`. Its benign clients' learning rate falls to .005 when the attack ends, which makes any back door last. BackFed's
    second stage trains all of the network, as it misspells what should freeze it.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(contrastive_loss(z, torch.tensor([2, 2, 0]), target=2, scale=1.0, temperature=0.5).item(), 6)
        0.392099
    """

    replaces_loss = True
    own_recipe = True

    def __init__(
        self,
        *,
        target_label: int = 0,
        scale: float = 6.0,
        temperature: float = 0.07,
        encoder_epochs: float = 10.0,
        encoder_lr: float = 0.005,
        encoder_milestones: Sequence[int] = (2, 4, 6, 8),
        encoder_decay: float = 0.1,
        classifier_epochs: float = 3.0,
        classifier_lr: float = 0.001,
        classifier_milestones: Sequence[int] = (2, 4),
        classifier_decay: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        output_layer: str | None = None,
    ) -> None:
        positive = {"scale": scale, "temperature": temperature, "encoder_epochs": encoder_epochs, "encoder_lr": encoder_lr}
        positive |= {"classifier_epochs": classifier_epochs, "classifier_lr": classifier_lr}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ConfigurationError(f"Chameleon.{name} must be more than 0 and finite, got {value}")
        for name, value in (("encoder_decay", encoder_decay), ("classifier_decay", classifier_decay)):
            if not 0 < value <= 1:
                raise ConfigurationError(f"Chameleon.{name} must be more than 0 and at most 1, got {value}")
        for name, passes in (("encoder_milestones", encoder_milestones), ("classifier_milestones", classifier_milestones)):
            if isinstance(passes, str) or not isinstance(passes, Sequence) or not all(map(is_pass, passes)):
                raise ConfigurationError(f"Chameleon.{name} must be whole numbers of passes from 1, got {passes!r}")
        if not 0 <= momentum < 1:
            raise ConfigurationError(f"Chameleon.momentum must lie in [0, 1), got {momentum}")
        if not 0 <= weight_decay < math.inf:
            raise ConfigurationError(f"Chameleon.weight_decay must be 0 or more, and finite, got {weight_decay}")
        self.target_label = self._target = target_label
        self.scale = scale
        self.temperature = temperature
        self.encoder_epochs, self.classifier_epochs = encoder_epochs, classifier_epochs
        self.encoder_lr, self.classifier_lr = encoder_lr, classifier_lr
        self.encoder_milestones, self.classifier_milestones = sorted(encoder_milestones), sorted(classifier_milestones)
        self.encoder_decay, self.classifier_decay = encoder_decay, classifier_decay
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.output_layer = output_layer
        self._seen: list[Tensor] | None = None  # in stage 1: the features of this step
        self._reached = False  # whether the encoder is known to have a say in the features

    def validate(self, num_classes: int) -> None:
        check_label("Chameleon.target_label", self._target, num_classes)

    def stages(self, module: nn.Module, clean: Samples, attacker: Attacker) -> Iterator[Stage]:
        layer = output_module(module, "Chameleon", self.output_layer)
        last = {id(parameter) for parameter in layer.parameters()}
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        encoder = [parameter for parameter in trained if id(parameter) not in last]
        classifier = [parameter for parameter in trained if id(parameter) in last]
        if not encoder or not classifier:
            raise ConfigurationError(
                f"Chameleon trains what comes before the output layer, and then that layer, but the client "
                f"{type(module).__name__} has {len(encoder)} trainable tensors before it and {len(classifier)} in it; use a "
                "client with a hidden layer, or name another layer (Chameleon.output_layer)"
            )
        if not self._reached:
            self._check_reached(module, layer, clean)
            self._reached = True
        try:
            with inputs_of(layer) as self._seen:
                schedule = self.encoder_milestones, self.encoder_decay
                yield self._stage(encoder, self.encoder_epochs, self.encoder_lr, *schedule)
            self._seen = None
            schedule = self.classifier_milestones, self.classifier_decay
            yield self._stage(classifier, self.classifier_epochs, self.classifier_lr, *schedule)
        finally:
            self._seen = None

    def _check_reached(self, module: nn.Module, layer: nn.Module, clean: Samples) -> None:
        """Raise `ConfigurationError` if nothing that is trained has a say in what the layer is given."""
        assert isinstance(module, L.LightningModule)
        with undisturbed(module), torch.enable_grad(), inputs_of(layer) as seen:
            module.eval()
            try:
                predict(module, clean.batch(torch.arange(min(1, len(clean)))))
            except Exception:  # of the user's own, which predicting before training shows
                return
            if seen and isinstance(seen[0], Tensor) and seen[0].requires_grad:
                return
            found = "is given what no trained tensor has a say in" if seen else "is not called in predicting"
        path = next(path for path, part in module.named_modules() if part is layer)
        raise ConfigurationError(
            f"Chameleon.output_layer is {path}, but that layer of the client {type(module).__name__} {found}, so that there "
            "are no features to train; name the last linear layer, which gives the logits, or leave output_layer out"
        )

    def _stage(self, trained: list[nn.Parameter], epochs: float, lr: float, milestones: list[int], decay: float) -> Stage:
        optimizer = SGD(trained, lr, self.momentum, weight_decay=self.weight_decay)
        return Stage(epochs, optimizer, MultiStepLR(optimizer, milestones, decay))

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        if self._seen is None:
            return loss
        targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        features = self._seen[0].flatten(1) if self._seen else None
        if not isinstance(targets, Tensor) or features is None or targets.shape != features.shape[:1]:
            found = "was not called" if features is None else f"was given {tuple(features.shape)}"
            raise ConfigurationError(
                f"Chameleon needs batches (inputs, targets) with a row of features for each target, but the output layer of "
                f"the client {type(module).__name__} {found} for a batch of type {type(batch).__name__}; use another attack, "
                "or name the layer (Chameleon.output_layer)"
            )
        features = F.normalize(features.float(), dim=1)
        return contrastive_loss(features, targets, target=self._target, scale=self.scale, temperature=self.temperature)


def is_pass(number: Any) -> bool:
    """Whether this is the number of a pass over the data, from 1."""
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 1


def contrastive_loss(features: Tensor, labels: Tensor, *, target: int, scale: float, temperature: float) -> Tensor:
    """The mean of l_i, () with gradients, see `Chameleon`.

    Args:
        features: z, (b, h) float32 of norm 1.
        labels: (b,) int64.
        target: whose samples count c = `scale`.
        scale: c.
        temperature: T.
    """
    alone = torch.eye(len(features), dtype=torch.bool, device=features.device)
    similar = features @ features.T / temperature
    # Not minus infinity, which would make NaN of a batch of one sample.
    others = similar.masked_fill(alone, torch.finfo(similar.dtype).min)
    shares = similar - others.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~alone
    each = torch.where(positive, shares, 0.0).sum(1) / positive.sum(1).clamp(min=1)
    return -(torch.where(labels == target, scale, 1.0) * each).mean()


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer was last given, as the one entry of a list, which is empty before."""
    seen: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen[:] = given[:1]

    handle = layer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
        seen.clear()
