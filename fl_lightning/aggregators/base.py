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
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.subclasses import Made
from fl_lightning.updates.plain import checked_root
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class Aggregator(Made, nn.Module):
    """A server rule: all clients' updates to one.

    A subclass implements `forward(shard) -> (S,)` and whatever of the other methods its definition asks for. Its
    constructor's keyword arguments are its configuration.

    What lasts from round to round is kept by `recall`: a rank keeps its own coordinates of it, and checkpoints carry it from
    any number of ranks to any other. What is small and the same on every rank may be a buffer instead.

    A rule that reaches beyond aggregation says so by hooks: `needs_root` (an update of the server's own), `needs_clients`
    (whose updates it sees), `train_benign` and `client_memory_size` (another local training), `accepts` (predictions).

    Called on a plain (N, d) tensor, array or list of rows a rule works in one process, with `weights` (N,) as an optional
    second argument. Rows that are not finite are left out, which a warning says; if none is left that counts the result is
    zero.

    Attributes:
        num_malicious: for rules that assume a number of malicious clients per round, that number where it was given.
        memory: what `recall` keeps, by name: (S,) float32 each.
    """

    num_malicious: int | None = None
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
            return super().__call__(updates)
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
        return super().__call__(shard)

    def forward(self, shard: UpdateShard) -> Tensor:
        """The rule itself: N finite updates, N >= 1, to (S,) float32."""
        raise NotImplementedError

    def check(self, num_clients: int) -> None:
        """Raise `ConfigurationError` if the rule is not defined for that many clients in a round."""

    def check_model(self, layers: Sequence[int]) -> None:
        """Raise `ConfigurationError` if the rule is not defined for a model of parameter tensors of these sizes."""

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

        The rule changes it in place, or sets `memory[name]`. It counts as changed by the round in which that happens.

        Raises:
            ConfigurationError: if what is kept belongs to a model of another size.
        """
        if name not in self.memory:
            self.memory[name] = torch.zeros(shard.width, device=shard.weights.device)
        kept = self.memory[name]
        if len(kept) != shard.width:
            raise ConfigurationError(
                f"{type(self).__name__} remembers {len(kept)} coordinates from earlier calls, these updates have "
                f"{shard.width}; make a new rule, or call forget()"
            )
        return kept

    def forget(self) -> None:
        """Be as before the first round, rules inside this one too."""
        for part in self.modules():
            if isinstance(part, Aggregator):
                part.memory.clear()

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
