"""FLDetector: predict every client's update from its last one, and turn away who keeps being unlike the prediction.

Z. Zhang, X. Cao, J. Jia, N. Z. Gong, "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting
Malicious Clients", KDD 2022, https://arxiv.org/abs/2207.09209.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.filtering import DECIMALS, EQUAL, check_enough, shares_of_kept
from fl_lightning.aggregators.hessian_products import hessian_products
from fl_lightning.aggregators.line_clusters import number_on_a_line, upper_of_two
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.layers import Layer, output_layer
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.sums import inner_products

log = logging.getLogger(__name__)


class FLDetector(Aggregator):
    """A(G) = mean of the clients that have not been flagged. Unweighted.

    w_t are the global weights in round t, a_t the aggregate, g_i the update of client i, and r_i the round in which it took
    part last. From the last `window` steps w_t - w_{t-1} and changes a_t - a_{t-1} L-BFGS approximates the Hessian H.

    1. Prediction: g_i is to be its last update + H (w_t - w_{r_i}). e_i is the Euclidean distance from that, and the round's
       score of client i is e_i / sum_j e_j over the clients that are predicted.
    2. Suspicion: of the round's clients that have `window` scores, the mean of the last so many, scaled to [0, 1], is
       clustered. If the gap statistic finds one cluster, nobody is flagged; nor if all are equal.
    3. Otherwise those in the upper of two clusters are flagged: they are left out in this round and all later ones, and what
       was remembered of them is forgotten. All scores are dropped, as their sums over j had the flagged ones in them.

    In the first `warmup_rounds` rounds nobody is predicted. A client that takes part for the first time has no score and is
    averaged. H is 0, so that the last update is the prediction, while there is no pair, where the last pair has no positive
    curvature, and where the system that L-BFGS solves is singular. Clusters on a line are exact (all cuts are tried).
    Buffers are combined by the coordinate median of all clients.

    A rank remembers S float32 of each of the last `window` steps and changes, of every client's last update, and of the weights
    in each round in which one of these took part last: one round where all clients take part in each, up to one per client
    otherwise. That is 5.4 GB on all ranks together for 100 clients of a ResNet-18, which checkpoints carry too. Rounds are
    those in which the rule was called. A plain tensor brings no global weights; there the server is taken to step by -A(G).

    Bounds: it defends nothing before round `warmup_rounds` + `window` - 1, and what attackers did until then stays in the
    model. Clients that take part seldom have too few scores for much longer. No f is assumed, but the upper cluster is taken
    for the malicious one whatever its size, which may be most of the clients. The test is repeated in every round, so that
    false alarms add up: 20 uniformly random scores are taken for more than one cluster in about every sixth round. One loud
    update moves a_t, and with it everybody's prediction. A run is refused if N < 3, where clusters cannot be told.

    Verdict: 0 for who is flagged, 1 for who is not.

    Args:
        window: pairs that H is made of, and scores that are averaged, at least 1.
        warmup_rounds: at least 0.
        history: predict `all` coordinates, or those of the `last_layer`, the last two parameter tensors (weight and bias of the
            output layer), of which alone vectors are remembered then.
        max_clusters: the most that the gap statistic tries, at least 2.
        references: sets of uniform numbers that it compares with, at least 1.

    Differs from the paper: the paper restarts the training without the flagged clients, and the authors' code stops there. A
    rule cannot restart a run: optimizer and schedule of the server, attackers' states and what is logged are not its own. So
    they are left out from then on, and the model stays. The paper has all clients in every round, one gradient step of each,
    and an attack from the first round on; the prediction over several rounds for clients that pause, and after several local
    steps, is not covered by its theory. Constants are those of the authors' code. Faults of re-implementations are avoided: a
    gap statistic that never finds one cluster, distances in place of their squares in it, updates compared with those of
    whoever had the same place in the last cohort, and scores that outlast a detection.

    Example:
        >>> import torch
        >>> rule = FLDetector(window=2, warmup_rounds=1)
        >>> for t in range(4):
        ...     attackers = torch.tensor([[9.0, 9.0], [-9.0, 9.0]]) * (-1) ** t
        ...     benign = torch.tensor([1.0, 1.0]) + 0.01 * torch.arange(8.0)[:, None]
        ...     found = rule(torch.cat([benign, attackers]))
        >>> found, sorted(rule.flagged)
        (tensor([1.0350, 1.0350]), [8, 9])
    """

    def __init__(
        self,
        *,
        window: int = 10,
        warmup_rounds: int = 20,
        history: Literal["all", "last_layer"] = "all",
        max_clusters: int = 7,
        references: int = 10,
    ) -> None:
        super().__init__()
        least = {"window": (window, 1), "warmup_rounds": (warmup_rounds, 0), "max_clusters": (max_clusters, 2)}
        for name, (number, bound) in {**least, "references": (references, 1)}.items():
            if number < bound:
                raise ConfigurationError(f"FLDetector.{name} must be at least {bound}, got {number}")
        if history not in ("all", "last_layer"):
            raise ConfigurationError(f"FLDetector.history must be 'all' or 'last_layer', got {history!r}")
        self.window = window
        self.warmup_rounds = warmup_rounds
        self.history = history
        self.max_clusters = max_clusters
        self.references = references
        self.begin_afresh()

    def begin_afresh(self) -> None:
        """Know no client."""
        self.rounds = 0
        self.seen: dict[int, int] = {}  # by client, the round in which it took part last
        self.scores: dict[int, list[float]] = {}
        self.flagged: set[int] = set()

    def forget(self) -> None:
        super().forget()
        self.begin_afresh()

    def get_extra_state(self) -> dict[str, Any]:
        """What checkpoints carry beside the vectors."""
        return {
            "rounds": self.rounds,
            "seen": dict(self.seen),
            "scores": {client: list(scores) for client, scores in self.scores.items()},
            "flagged": sorted(self.flagged),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.rounds, self.seen = state["rounds"], dict(state["seen"])
        self.scores = {client: list(scores) for client, scores in state["scores"].items()}
        self.flagged = set(state["flagged"])

    @property
    def needs_clients(self) -> bool:
        return True

    @property
    def judges(self) -> bool:
        return True

    def check(self, num_clients: int) -> None:
        check_enough("FLDetector", num_clients, 3, f"of {num_clients} clients the gap statistic never finds two clusters")

    def check_model(self, layers: Sequence[Layer]) -> None:
        last = self.history == "last_layer"
        self.first_remembered = output_layer(layers, "FLDetector.history 'last_layer'")[0].start if last else 0

    # ---- a round -----------------------------------------------------------------------------------------------------

    def forward(self, shard: UpdateShard) -> Tensor:
        if shard.clients is None:
            raise ConfigurationError(
                "FLDetector needs to know whose updates it sees, but these rows are no single client's; use the rule "
                "without Bucketing"
            )
        self.check_model(shard.layers)
        clients, weights = shard.clients.tolist(), self.global_weights(shard)
        if self.rounds >= self.warmup_rounds and (predicted := [client for client in clients if client in self.seen]):
            self.score(predicted, self.errors(shard, weights, predicted))
            self.flag(self.suspects(predicted, shard.generator("FLDetector")))
        kept = torch.tensor([client not in self.flagged for client in clients])
        shard.judge(kept, most=1.0)
        aggregate = shard.combine(shares_of_kept("FLDetector", shard, kept))
        if kept.any():
            self.remember(shard, weights, aggregate, kept)
        return aggregate

    def global_weights(self, shard: UpdateShard) -> Tensor:
        """w_t at the coordinates that are remembered."""
        if shard.broadcast is not None:
            return shard.broadcast[len(shard.broadcast) - len(self.recall("aggregate", shard)) :]
        aggregate = self.recall("aggregate", shard)
        return self.recall(f"weights {self.rounds - 1}", shard) - aggregate if self.rounds else torch.zeros_like(aggregate)

    def errors(self, shard: UpdateShard, weights: Tensor, clients: list[int]) -> Tensor:
        """(n,) float64 on CPU, e of each of these clients."""
        pairs = range(max(1, self.rounds - self.window), self.rounds)
        since = sorted({self.seen[client] for client in clients})
        vectors = [self.recall(f"step {t}", shard) for t in pairs] + [self.recall(f"change {t}", shard) for t in pairs]
        vectors += [self.recall(f"weights {t}", shard) for t in since]

        def history(now: Tensor, *of: Tensor) -> Tensor:
            """Columns of steps, changes, and differences of the weights now to those of earlier rounds."""
            stacked = torch.stack(of).double()
            stacked[2 * len(pairs) :] = now - stacked[2 * len(pairs) :]
            return stacked

        nobody = shard.with_rows(weights.new_empty(0, shard.width))
        gram = nobody.reduce(lambda _, *of: inner_products(history(*of)), weights, *vectors, first=self.first_remembered)
        factors = hessian_products(((gram + gram.T) / 2).cpu(), len(pairs)).to(weights.device)
        row_of = {client: i for i, client in enumerate(shard.clients.tolist())} if shard.clients is not None else {}
        rows = torch.tensor([row_of[client] for client in clients], device=weights.device)
        which = torch.tensor([since.index(self.seen[client]) for client in clients], device=weights.device)

        def squares(values: Tensor, *of: Tensor) -> Tensor:
            last = torch.stack(of[: len(clients)]).double()
            moved = factors @ history(*of[len(clients) :])
            return (last + moved[which] - values[rows]).square().sum(1)

        last = [self.recall(f"update {client}", shard) for client in clients]
        return shard.reduce(squares, *last, weights, *vectors, first=self.first_remembered).sqrt().cpu()

    def score(self, clients: list[int], errors: Tensor) -> None:
        """Add the round's scores."""
        total = float(errors.sum()) or 1.0
        for client, error in zip(clients, errors.tolist(), strict=True):
            self.scores[client] = [*self.scores.get(client, []), error / total][-self.window :]

    def suspects(self, clients: list[int], generator: torch.Generator) -> list[int]:
        """Who of the round's clients is in the upper cluster, if there are clusters."""
        known = [client for client in clients if len(self.scores[client]) >= self.window]
        if not known:
            return []
        scores = torch.tensor([self.scores[client] for client in known], dtype=torch.float64).mean(1)
        low, high = scores.min(), scores.max()
        if high - low <= EQUAL * high:
            return []
        scaled = ((scores - low) / (high - low)).round(decimals=DECIMALS)
        if number_on_a_line(scaled, self.max_clusters, self.references, generator) == 1:
            return []
        return [client for client, upper in zip(known, upper_of_two(scaled).tolist(), strict=True) if upper]

    def flag(self, suspects: list[int]) -> None:
        """Have no more to do with these clients."""
        if not suspects:
            return
        log.info("FLDetector: clients %s are flagged and left out from now on", suspects)
        self.flagged.update(suspects)
        self.scores.clear()
        for client in suspects:
            del self.seen[client], self.memory[f"update {client}"]

    # ---- memory ------------------------------------------------------------------------------------------------------

    def remember(self, shard: UpdateShard, weights: Tensor, aggregate: Tensor, kept: Tensor) -> None:
        """Keep the round's weights, its aggregate and its updates, and the newest pair in place of the oldest."""
        t, before = self.rounds, self.recall("aggregate", shard)
        here = slice(shard.width - len(before), None)
        if t:
            step = weights - self.recall(f"weights {t - 1}", shard)
            self.recall(f"step {t}", shard).copy_(step.clamp_(-MOST, MOST))
            self.recall(f"change {t}", shard).copy_((aggregate[here] - before).clamp_(-MOST, MOST))
            for name in (f"step {t - self.window}", f"change {t - self.window}"):
                self.memory.pop(name, None)
        self.recall(f"weights {t}", shard).copy_(weights)
        before.copy_(aggregate[here])
        assert shard.clients is not None
        for i, client in enumerate(shard.clients.tolist()):
            if kept[i]:
                self.recall(f"update {client}", shard).copy_(shard.row(i)[here])
                self.seen[client] = t
        needed = {f"weights {seen}" for seen in self.seen.values()} | {f"weights {t}"}
        for name in [name for name in self.memory if name.startswith("weights ") and name not in needed]:
            del self.memory[name]
        self.rounds = t + 1

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)
