"""BackdoorIndicator: plant a backdoor of the server's own before each round, and turn away whose models keep it alive.

S. Li, Y. Dai, "BackdoorIndicator: Leveraging OOD Data for Proactive Backdoor Detection in Federated Learning", USENIX Security
2024, https://arxiv.org/abs/2405.20862, with the settings of its published code for CIFAR-10.

Letters: P out-of-distribution samples (OOD: of another kind than the task's), C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.filtering import shares_of_kept
from fl_lightning.checked import whole
from fl_lightning.data.base import Samples
from fl_lightning.data.edge_pool import EdgePool
from fl_lightning.data.passes import shuffled_batches
from fl_lightning.data.probe import Noise, ProbeBatches
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits
from fl_lightning.modules.predicting import predicted_classes
from fl_lightning.seeding import generator as seeded
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class BackdoorIndicator(Aggregator):
    """A(G) = (1 / K) sum over the K clients that pass of g_i. Unweighted.

    The idea: a backdoor and the server's plant both map odd inputs to one class, so training on the backdoor keeps the plant
    alive, and benign training forgets it.

    - Once: every OOD sample is assigned a class at random, each class as often as others. The same ones in every run.
    - Before each round from `start_round` on, the model w_t is trained on them in training mode, by SGD: up to `epochs` passes
      in batches of `batch_size`, the learning rate times `decay` after each of the passes `milestones`. The loss is the cross
      entropy plus (`mu` / 2) ||w - w_t||, the norm and not its square. With `patience` it ends when the mean loss of that many
      passes in a row has changed by less than `tolerance` from pass to pass.
    - BatchNorm's statistics after that are kept, S; those of before go back into the model that clients are sent. So they are
      sent the planted parameters; updates are differences to these and the server steps from there, so the plant stays in.
    - A client's model, with S as its statistics, predicts the OOD samples. Its value is the largest, over classes c, of the
      share of the samples assigned to c that it takes for c. The client passes if that is less than `threshold`. Whose model
      gives logits that are not numbers, or infinite so that no class is ahead, for any of them, does not pass.

    Before `start_round` all pass, and so they do where the rule is called on a plain tensor, which brings no models. If nobody
    passes the update is zero, and a warning says so. If planting makes the model not finite it is left out in that round, with
    a warning, and all pass. Buffers are combined by the coordinate median. The module's `forward` must map one tensor to
    logits.

    What one may expect and is not so: the value is the accuracy on the best class, not on all; `threshold` is no share of
    clients; clients never see the model without the plant. An adaptive attacker that knows the OOD samples can forget them.

    Bounds: none on f, as each client is judged by itself.

    Verdict: 1 passed, 0 not.

    Cost: `epochs` * ceil(P / `batch_size`) steps a round on every rank, 2,600 with the defaults, where a client with 500
    samples takes 16 in two epochs; so give `patience` (10 with `tolerance` .001 in another published implementation). And P
    samples for each submitted model.

    Args:
        ood: the samples: uniform `Noise` of the task's input shape, or a pool of rare inputs, such as `Southwest` with
            `CIFAR10`.
        max_samples: of a pool with more, so many are drawn, at least 1.
        threshold: in (0, 1].
        start_round: from 0. The published 1,100 belongs to a run that goes on from round 1,200 of another, so all its rounds
            have a plant; give such weights as `model.start_from`.
        epochs: passes over the OOD samples, at least 1.
        batch_size: at least 1. A last batch of one is joined to the one before it.
        learning_rate: more than 0.
        momentum: in [0, 1).
        weight_decay: at least 0.
        mu: pulls the model back, at least 0; .1 in the other implementation.
        milestones: passes, from 1 and ascending, after which the learning rate falls.
        decay: by what it is multiplied then, in (0, 1].
        patience: passes, at least 1; left out, all `epochs` passes are taken.
        tolerance: more than 0.

    Differs from the published code: it multiplies the mean by .5, which `model.server_optimizer` can do; it takes CIFAR-100 for
    the OOD set of CIFAR-10, which is to be given as a pool of yours; it divides by 0 where nobody passes.

    Example:
        >>> rule = BackdoorIndicator(ood=Noise(samples=600, low=-0.3, high=0.7), patience=10)
        >>> rule(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([2., 1.])
    """

    def __init__(
        self,
        *,
        ood: EdgePool | Noise = Noise(samples=800),  # noqa: B008  frozen
        max_samples: int = 800,
        threshold: float = 0.95,
        start_round: int = 0,
        epochs: int = 200,
        batch_size: int = 64,
        learning_rate: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        mu: float = 0.4,
        milestones: Sequence[int] = (10, 20, 30, 160, 200, 240),
        decay: float = 0.8,
        patience: int | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        if not isinstance(ood, (EdgePool, Noise)):
            raise ConfigurationError(f"BackdoorIndicator.ood must be a pool or Noise(samples=...), got {ood!r}")
        for name, value, usual in (("threshold", threshold, 0.95), ("decay", decay, 0.8)):
            if not 0 < value <= 1:
                raise ConfigurationError(f"BackdoorIndicator.{name} must lie in (0, 1], got {value}; {usual} is usual")
        if not 0 <= momentum < 1:
            raise ConfigurationError(f"BackdoorIndicator.momentum must lie in [0, 1), got {momentum}; .9 is usual")
        for name, value, usual in (("learning_rate", learning_rate, 0.005), ("tolerance", tolerance, 1e-3)):
            if not 0 < value < math.inf:
                raise ConfigurationError(
                    f"BackdoorIndicator.{name} must be more than 0 and finite, got {value}; {usual} is usual"
                )
        for name, value in (("weight_decay", weight_decay), ("mu", mu)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(
                    f"BackdoorIndicator.{name} must be at least 0 and finite, got {value}; 0 leaves it out"
                )
        if isinstance(milestones, str) or not isinstance(milestones, Sequence):
            raise ConfigurationError(f"BackdoorIndicator.milestones must be a list of passes, got {milestones!r}; [] for none")
        milestones = [whole("BackdoorIndicator.milestones", milestone) for milestone in milestones]
        if milestones != sorted(milestones) or any(milestone < 1 for milestone in milestones):
            raise ConfigurationError(f"BackdoorIndicator.milestones must ascend from 1 at least, got {milestones}")
        self.ood = ood
        self.max_samples = whole("BackdoorIndicator.max_samples", max_samples, 1)
        self.threshold = threshold
        self.start_round = whole("BackdoorIndicator.start_round", start_round, 0)
        self.epochs = whole("BackdoorIndicator.epochs", epochs, 1)
        self.batch_size = whole("BackdoorIndicator.batch_size", batch_size, 1)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.mu = mu
        self.milestones = milestones
        self.decay = decay
        self.patience = None if patience is None else whole("BackdoorIndicator.patience", patience, 1)
        self.tolerance = tolerance
        self.planted: tuple[Tensor, Tensor] | None = None  # inputs (P, ...) and assigned classes (P,)
        self.statistics: dict[str, Tensor] | None = None  # S, in rounds with a plant

    @property
    def judges(self) -> bool:
        return True

    def check_task(self, samples: Samples, num_classes: int) -> None:
        """Draw the OOD samples and assign them classes, each of P / C samples or one more."""
        inputs = self.ood_inputs(samples)
        if len(inputs) < num_classes:
            raise ConfigurationError(
                f"BackdoorIndicator has {len(inputs)} OOD samples for {num_classes} classes; give it one for each at least, "
                "800 are usual"
            )
        order = torch.randperm(len(inputs), generator=seeded(0, "BackdoorIndicator: classes"))
        self.planted = inputs, (torch.arange(len(inputs)) % num_classes)[order]

    def ood_inputs(self, samples: Samples) -> Tensor:
        """(P, ...) model inputs of the shape that the task's samples have."""
        batch = samples.batch(torch.arange(1))
        like = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(like, Tensor) or not like.is_floating_point():
            raise ConfigurationError(
                f"BackdoorIndicator needs inputs that are one tensor of real numbers, but the task's are {type(like).__name__}"
                f"{f' of {like.dtype}' if isinstance(like, Tensor) else ''}; use another rule"
            )
        if isinstance(self.ood, Noise):
            low, high = self.ood.low, self.ood.high
            drawn = torch.rand(self.ood.samples, *like.shape[1:], generator=seeded(0, "BackdoorIndicator: noise"))
            return (drawn * (high - low) + low).to(like.dtype)
        pool = self.ood.train()
        chosen = torch.randperm(len(pool), generator=seeded(0, "BackdoorIndicator: pool"))[: self.max_samples]
        inputs = pool.batch(chosen)[0].cpu()
        if inputs.shape[1:] != like.shape[1:]:
            raise ConfigurationError(
                f"BackdoorIndicator.ood has inputs of shape {tuple(inputs.shape[1:])}, but the task's have "
                f"{tuple(like.shape[1:])}; give a pool of the task's shape, or Noise"
            )
        return inputs

    # ---- planting ----------------------------------------------------------------------------------------------------

    def before_broadcast(self, module: L.LightningModule, round_number: int) -> None:
        self.statistics = None
        if round_number < self.start_round or self.planted is None:
            return
        inputs, targets = (tensor.to(next(module.parameters()).device) for tensor in self.planted)
        before = {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        self.plant(module, inputs, targets)
        after = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        parameters = dict(module.named_parameters())
        judged = (*parameters.values(), *(buffer for name, buffer in after.items() if before[name].isfinite().all()))
        finite = all(bool(tensor.isfinite().all()) for tensor in judged)
        with torch.no_grad():
            for name, tensor in (*module.named_buffers(), *([] if finite else parameters.items())):
                tensor.copy_(before[name])
        if finite:
            self.statistics = after
        else:
            log.warning(
                "round %d: BackdoorIndicator's planting makes the model not finite, so it is left out and all clients pass; "
                "lower its learning_rate",
                round_number,
            )

    def plant(self, module: L.LightningModule, inputs: Tensor, targets: Tensor) -> None:
        """Train the module on the OOD samples."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        start = torch.cat([parameter.detach().flatten() for parameter in parameters])
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, gamma=self.decay)
        last, calm = math.inf, 0
        for _ in range(self.epochs):
            total = torch.zeros((), device=inputs.device)
            for indices in self.batches(len(inputs)):
                logits = class_logits(module, inputs[indices], "BackdoorIndicator")
                moved = torch.cat([parameter.flatten() for parameter in parameters]) - start
                loss = F.cross_entropy(logits, targets[indices]) + self.mu / 2 * moved.norm()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(indices)
            schedule.step()
            if self.patience is not None:
                mean = float(total) / len(inputs)
                calm = calm + 1 if abs(mean - last) < self.tolerance else 0
                last = mean
                if calm >= self.patience:
                    return

    def batches(self, n: int) -> list[Tensor]:
        """Indices (b,) int64 of a pass over n samples, shuffled."""
        return shuffled_batches(n, self.batch_size)

    # ---- what has become of it ---------------------------------------------------------------------------------------

    def examine(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> Tensor:
        """(1,) float64, the accuracy on the OOD samples of the class where it is best; NaN where there is no class for some."""
        assert self.planted is not None, "there is a plant where models are examined"
        for name, buffer in module.named_buffers():
            if self.statistics and name in self.statistics:
                buffer.copy_(self.statistics[name])
        inputs, targets = (tensor.to(next(module.parameters()).device) for tensor in self.planted)
        parts = inputs.split(probe.batch_size)
        found = torch.cat([predicted_classes(class_logits(module, part, "BackdoorIndicator")) for part in parts])
        return best_class(found, targets).where((found >= 0).all(), torch.nan)[None]

    def forward(self, shard: UpdateShard) -> Tensor:
        kept = torch.ones(shard.num_clients, dtype=torch.bool)
        if self.statistics is not None and shard.examined is not None:
            kept = shard.examined[:, 0].cpu() < self.threshold  # NaN is not
        shard.judge(kept, most=1.0)
        return shard.combine(shares_of_kept("BackdoorIndicator", shard, kept))

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def best_class(predicted: Tensor, assigned: Tensor) -> Tensor:
    """() float64, the largest over classes c of the share of the samples assigned to c that are predicted as c.

    Args:
        predicted: (P,) int64, -1 for none.
        assigned: (P,) int64, at least one of each class.

    Example:
        >>> best_class(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 1, 1])).item()
        1.0
    """
    right = assigned[predicted == assigned].bincount(minlength=int(assigned.max()) + 1)
    return (right.double() / assigned.bincount()).max()
