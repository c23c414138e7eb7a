"""What every server rule has in common."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fl_lightning.data.base import Samples
from fl_lightning.data.outcomes import Outcome
from fl_lightning.data.probe import Probe, ProbeBatches
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.predicting import predict
from fl_lightning.modules.subclasses import Made
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.plain import checked_root
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class Aggregator(Made, nn.Module):
    """A server rule: all clients' updates to one.

    A subclass implements `forward(shard) -> (S,)` and whatever of the other methods its definition asks for. Its
    constructor's keyword arguments are its configuration.

    What lasts from round to round is kept by `recall`: a rank keeps its own coordinates of it, and checkpoints carry it from
    any number of ranks to any other. What is small and the same on every rank may be a buffer instead, or extra state of the
    module (`get_extra_state`) where its size is not known beforehand.

    A rule that reaches beyond aggregation says so by hooks: `needs_root` (an update of the server's own), `needs_clients`
    (whose updates it sees), `judges` (how much each client counted), `examine` and `examine_broadcast` (measurements of the
    models that clients submit), `train_benign` and `client_memory_size` (another local training), `before_broadcast` and
    `after_step` (the global model itself), `predict` and `accepts` (predictions).

    Called on a plain (N, d) tensor, array or list of rows a rule works in one process, with `weights` (N,) as an optional
    second argument. Rows that are not finite are left out, which a warning says; if none is left that counts the result is
    zero.

    Attributes:
        num_malicious: for rules that assume a number of malicious clients per round, that number where it was given.
        probe: the inputs that `examine` is given: `Noise(samples=...)`, drawn anew in every round; `"root"`, the samples of
            `data.root`; `Samples` or a tensor of inputs (P, ...) of the rule's own, as the model takes them; or none.
        memory: what `recall` keeps, by name: (S,) float32 each.
        first_remembered: the coordinate of d that memory begins with, 0 by default, for rules that remember but the last of the
            parameter tensors: a rank then keeps those of its S coordinates that come later.
        outcomes: what tasks may ask for (`Classes`, `Tokens` and so on; `Outcome` for any) that the rule is for; None: one
            class per sample if it predicts, examines models or trains clients in its own way, else any.
    """

    num_malicious: int | None = None
    probe: Probe = None
    first_remembered: int = 0
    outcomes: tuple[type[Outcome], ...] | None = None
    _expected_malicious: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Tensor] = {}

    def __call__(
        self, updates: UpdateShard | Tensor | ArrayLike, weights: Tensor | ArrayLike | None = None, *, root: Any = None
    ) -> Tensor:
        """Aggregate a shard, or all updates at once.

        Args:
            updates: the round's updates, old minus new parameters, on this rank's coordinates; or a plain (N, d) tensor.
            weights: (N,) sample counts for a plain tensor, at least 0; 1 each where left out. A shard brings its own.
            root: (d,) the server's own update beside a plain tensor, for rules that need one. A shard brings its own.

        Returns:
            (S,) float32, the server's pseudo-gradient; (d,) for a plain tensor.

        Raises:
            ConfigurationError: for updates that are no (N, d) matrix of numbers, and weights or a root that do not fit.
        """
        name = type(self).__name__
        if isinstance(updates, UpdateShard):
            if weights is not None or root is not None:
                raise ConfigurationError(f"{name}: a shard brings weights and root of its own; call the rule with it alone")
            updates.verdict = None  # of another rule
            return self._aggregate(updates)
        shard = UpdateShard.from_updates(updates, weights)
        if root is not None:
            if not self.needs_root:
                raise ConfigurationError(
                    f"{name} has no use for root, the server's own update; call it without, or use FLTrust"
                )
            shard.root = checked_root(root, shard.values)
        finite = shard.finite_rows()
        if not finite.all():
            log.warning("%s: rows %s are not finite, and left out", name, (~finite).nonzero().flatten().tolist()[:10])
            shard.keep(finite)
        if not shard.weights.any():  # nobody is left, or nobody who counts
            return torch.zeros(shard.width, device=finite.device)
        return self._aggregate(shard)

    def _aggregate(self, shard: UpdateShard) -> Tensor:
        return per_coordinate(super().__call__(shard), shard, f"{type(self).__name__}.forward")

    def forward(self, shard: UpdateShard) -> Tensor:
        """The rule itself: N finite updates, N >= 1, to (S,) float32."""
        raise NotImplementedError

    def check(self, num_clients: int) -> None:
        """Raise `ConfigurationError` if the rule is not defined for that many clients in a round."""

    def check_model(self, layers: Sequence[Layer]) -> None:
        """Raise `ConfigurationError` if the rule is not defined for a model of these parameter tensors."""

    def check_task(self, samples: Samples, num_classes: int) -> None:
        """Learn what the clients' data are like, all of them together, and how many classes there are; called after `check`.

        Raise `ConfigurationError` if the rule is not defined for them. Whatever is drawn here must be the same on all ranks.
        """

    def expect(self, num_malicious: int) -> None:
        """Learn how many malicious clients the cohort's setting puts into a round; called before `check`.

        A rule that assumes such a number has the argument `num_malicious`, which goes before what is expected here.
        """
        self._expected_malicious = num_malicious

    def assumed_malicious(self) -> int:
        """f, for rules with the argument `num_malicious`: that argument, else what the cohort's setting says.

        Raises:
            ConfigurationError: if neither is known, as when the rule is called on a plain tensor.
        """
        assumed = self.num_malicious if self.num_malicious is not None else self._expected_malicious
        if assumed is None:
            name = type(self).__name__
            raise ConfigurationError(f"{name} assumes a number of malicious clients per round; give {name}(num_malicious=...)")
        return assumed

    def mask(self, shard: UpdateShard) -> Tensor:
        """(S,) bool, the coordinates that the rule lets move; all of them for a rule without a mask."""
        return torch.ones(shard.width, dtype=torch.bool, device=shard.weights.device)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        """Combine updates of buffers (BatchNorm's running statistics), which a sign mask or vote would freeze.

        Robust rules override this with their location estimate without any mask, unweighted ones with an unweighted one;
        the default is the weighted mean.

        Returns:
            (S,) float32.
        """
        return shard.mean(shard.shares)

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def recall(self, name: str, shard: UpdateShard) -> Tensor:
        """(S,) float32, what the rule keeps under `name` on the shard's coordinates; zeros at first.

        Of a rule with `first_remembered` they begin with that one.

        The rule changes it in place, or sets `memory[name]`. It counts as changed by the round in which that happens.

        Raises:
            ConfigurationError: if what is kept belongs to a model of another size.
        """
        width = shard.width - min(max(0, self.first_remembered - shard.start), shard.width)
        if name not in self.memory:
            self.memory[name] = torch.zeros(width, device=shard.weights.device)
        kept = self.memory[name]
        if len(kept) != width:
            raise ConfigurationError(
                f"{type(self).__name__} remembers {len(kept)} coordinates from earlier calls, these updates have "
                f"{width}; make a new rule, or call forget()"
            )
        return kept

    def forget(self) -> None:
        """Be as before the first round, rules inside this one too."""
        self.memory.clear()
        for part in self.modules():
            if isinstance(part, Aggregator) and part is not self:
                part.forget()

    @property
    def judges(self) -> bool:
        """Whether `forward` says how much each client counted, by `UpdateShard.judge`. A rule's docstring says what that is."""
        return False

    # ---- beyond aggregation ------------------------------------------------------------------------------------------

    @property
    def needs_root(self) -> bool:
        """Whether the rule wants `UpdateShard.root`: the update that the server finds by the clients' own local procedure on
        the data module's root set, in as many steps as the cohort's clients take on average."""
        return False

    @property
    def needs_clients(self) -> bool:
        """Whether the rule must know whose updates the rows are (`UpdateShard.clients`), so that rows mixed from several
        clients' updates are not for it."""
        return False

    def examine(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> Tensor:
        """Measure one model: (q,) numbers, as many for every model, which need not be finite.

        A rule that overrides this finds the measurements of a round in `UpdateShard.examined`, (N, q), and those of the model
        that clients were sent in `UpdateShard.examined_broadcast`, (q,). Models are measured when one of these is first read,
        on any rank each, so the hook must call no collective; a round in which neither is read costs nothing.

        Args:
            module: what the client submitted: the broadcast weights minus its update, after attackers rewrote it. Its
                floating-point buffers (BatchNorm's running statistics) are those that it submitted, or the global ones where
                `Federation(buffers="keep")`; counters and frozen parameters are the global ones. In evaluation mode, without
                gradients unless they are turned on (`torch.enable_grad()`). It may be changed; that is put back.
            probe: the batches of `self.probe`, the same for all models of a round; `len(probe)` is the number of samples.
            generator: CPU generator of this client and round. The global generators are seeded likewise.

        Updates that are not finite have been excluded before. Inside `Bucketing` and the like, where the rule sees mixed
        updates, the models are the mixed ones.
        """
        raise NotImplementedError

    def examine_broadcast(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> None:
        """Look at the model that the clients were sent, before `examine` is given theirs; nothing by default.

        For rules that compare each model with it on every input: what is kept here, as its outputs, need not travel. Called on
        every rank in rounds in which models are examined, with all else as for `examine`, and must find the same on all.
        """

    def before_broadcast(self, module: L.LightningModule, round_number: int) -> None:
        """Edit the global model before the clients of a round are sent it; nothing by default.

        Clients start from what it is then, their updates are differences to that, and the server steps from there.

        Args:
            module: the global model, in training mode and with gradients turned on, as for a training step. Values of
                parameters and buffers may be changed in place (under `torch.no_grad()`); what else is changed is put back.
                Values that are not finite have the whole edit taken back, and a warning says so.
            round_number: t, from 0.

        Called on every rank, and must do the same on all: draws come from the global generators, which are seeded alike by
        (seed, hook, round). What it must know of earlier rounds belongs into a buffer of the rule, as it has to outlast a
        resume.
        """

    def after_step(self, module: L.LightningModule, round_number: int) -> None:
        """The same at the end of every round, after the server's step, also one that was refused.

        What this leaves is what is evaluated, written to checkpoints and found at the end of a run.
        """

    def predict(self, module: L.LightningModule, batch: Any, generator: torch.Generator) -> Tensor:
        """What is predicted for an evaluation batch, which Acc and ASR count: (b, C) logits or probabilities.

        The global model's logits by default; a rule that votes calls `super().predict(...)` for each of its models.

        Args:
            module: the global model, in evaluation mode and without gradients. Whoever changes it puts it back.
            batch: as `training_step` takes it; its targets are not to be looked at.
            generator: CPU generator of this round, evaluation set and batch: the same whichever rank has the batch.

        Returns:
            (b, C) floats, the largest of which is the prediction; (b,) or (b, 1) logits for two classes.
            `accepts` gets their softmax, or they themselves where all rows are probabilities.
        """
        return predict(module, batch)

    def train_benign(
        self, client: L.LightningModule, samples: Samples, num_classes: int, generator: torch.Generator, memory: Tensor
    ) -> dict[str, float] | None:
        """Train a benign client in the rule's own way; None, the default, leaves it to `LocalTraining`.

        Malicious clients do as they like, so they are never asked.

        Args:
            client: the module, holding the global weights; to be trained in place.
            samples: the client's data, on the module's device.
            num_classes: of the task.
            generator: CPU generator of this client and round. The global generators are seeded likewise.
            memory: (`client_memory_size`,) float32, what this client keeps between rounds, to be changed in place; zeros at
                first. It travels to whichever rank trains the client, and checkpoints carry it.

        Returns:
            What the client logs, averaged over its steps.
        """
        return None

    def client_memory_size(self, samples: Samples, num_classes: int) -> int:
        """How many float32 numbers every benign client keeps between rounds, given the training data and their classes."""
        return 0

    def accepts(self, probabilities: Tensor) -> Tensor:
        """Which predictions stand at evaluation: (b, C) class probabilities -> (b,) bool; all of them by default.

        A rejected prediction counts as an error for Acc and as a failure for ASR.
        """
        return torch.ones(len(probabilities), dtype=torch.bool, device=probabilities.device)


def per_coordinate(found: Any, shard: UpdateShard, hook: str) -> Tensor:
    """What a hook of a rule's has made of a shard; raises `ConfigurationError` unless it is one number for each coordinate."""
    if not isinstance(found, Tensor) or found.shape != (shard.width,):
        what = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigurationError(
            f"{hook} must return a number for each coordinate of the shard, {(shard.width,)}, got {what}; return what "
            "shard.map, shard.mean or shard.combine give"
        )
    return found
