"""FoolsGold: clients whose updates have pointed the same way all along count as one attacker's and lose their weight.

C. Fung, C. J. M. Yoon, I. Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020, Algorithm 1;
"Mitigating Sybils in Federated Learning Poisoning", https://arxiv.org/abs/1808.04866.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import DECIMALS, cosine_distances
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.sums import inner_products

log = logging.getLogger(__name__)


class FoolsGold(Aggregator):
    """A(G) = (1/N) sum_i w_i g_i, with w_i in [0, 1] the lower the more client i's history looks like another's. Unweighted.

    H_c, the sum of all updates of client c up to this round, stands for it in the cosines s_ij = cos(H_i, H_j). With
    m_i = max_j s_ij, at least 0, over the other clients of the round,

    1. pardon: s_ij <- s_ij m_i / m_j where m_i < m_j, so that who merely resembles a copy is not taken for one;
    2. a_i = 1 - max_j s_ij, cut to [0, 1], and divided by the largest of the round;
    3. w_i = ln(a_i / (1 - a_i)) + 1/2, cut to [0, 1].

    Cosines are rounded to 12 decimals. A zero history has cosine 0 with every other. Where all clients are copies of others
    nobody has weight: the aggregate is zero and a warning says so. Buffers are combined by the coordinate median.

    A rank remembers S float32 of every client that ever took part, so all ranks together one vector of d for each: 10 GB for
    100 clients of 25 million parameters. A history is cut to what float32 holds.

    Bounds: defined for any N and f, but only if at least two clients share the attacker's aim: one alone is like nobody and has
    full weight. Benign clients with much the same data look like one attacker's to it.

    Verdict: the weight w_i.

    Args:
        use_history: compare sums over all rounds; otherwise this round's updates, which needs no memory.
        last_layers: compare in the last so many parameter tensors alone, which are the paper's indicative features; in all of
            them where left out.
        normalize: divide by sum_j w_j instead of N, so that the step does not shorten as clients lose weight.

    Differs from the paper: it sums w_i g_i and leaves the length to the learning rate; dividing by N is what the code of "DBA:
    Distributed Backdoor Attacks against Federated Learning", ICLR 2020, does, which compares in the last layer's weights. The
    confidence parameter is 1. The authors' code has .99 for an a_i of 1, which comes to the same; where all clients are copies
    it has NaN for all weights, or 1, as cosines round.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
        >>> FoolsGold()(updates)
        tensor([0.7500, 0.7500, 0.0000])
        >>> FoolsGold(normalize=True)(updates)
        tensor([1.5000, 1.5000, 0.0000])
    """

    def __init__(self, *, use_history: bool = True, last_layers: int | None = None, normalize: bool = False) -> None:
        super().__init__()
        if last_layers is not None and last_layers < 1:
            raise ConfigurationError(f"FoolsGold.last_layers must be at least 1, got {last_layers}; leave it out to see all")
        self.use_history = use_history
        self.last_layers = last_layers
        self.normalize = normalize

    @property
    def needs_clients(self) -> bool:
        return self.use_history

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.first_layer(layers)

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        seen = self.indicative(shard)
        compared = self.histories(shard) if self.use_history else [shard.row(i) for i in range(shard.num_clients)]
        gram = shard.reduce(products, seen, *compared)
        weights = client_weights((1 - cosine_distances(gram.cpu())).round(decimals=DECIMALS))
        shard.judge(weights, most=1.0)
        total = float(weights.sum())
        if total == 0:
            log.warning("FoolsGold: all %d clients look like others, so nobody has weight and the update is zero", len(weights))
            return torch.zeros_like(compared[0])
        return shard.combine(weights / (total if self.normalize else shard.num_clients))

    def histories(self, shard: UpdateShard) -> list[Tensor]:
        """(S,) for each client of the round, this round's update included."""
        if shard.clients is None:
            raise ConfigurationError(
                "FoolsGold.use_history needs to know whose updates it sees, but these rows are no single client's; use the "
                "rule without Bucketing, or set use_history to false"
            )
        found = []
        for i, client in enumerate(shard.clients.tolist()):
            history = self.recall(f"history {client}", shard)
            found.append(history.add_(shard.row(i)).clamp_(-MOST, MOST))
        return found

    def indicative(self, shard: UpdateShard) -> Tensor:
        """(S,) float32, 1 at the coordinates that are compared and 0 elsewhere."""
        first = self.first_layer(shard.layers)
        seen = torch.zeros(shard.width, device=shard.weights.device)
        for layer, columns in shard.layer_slices():
            seen[columns] = float(layer >= first)
        return seen

    def first_layer(self, layers: Sequence[Layer]) -> int:
        """The first parameter tensor that is compared.

        Raises:
            ConfigurationError: if there are fewer than `last_layers`.
        """
        first = 0 if self.last_layers is None else len(layers) - self.last_layers
        if first < 0:
            raise ConfigurationError(
                f"FoolsGold.last_layers is {self.last_layers}, but the model has {len(layers)} parameter tensors; lower it"
            )
        return first

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def products(_: Tensor, seen: Tensor, *vectors: Tensor) -> Tensor:
    """(c,) float32, of which N -> (N, N) float64, their inner products over the columns where `seen` is 1."""
    return inner_products(torch.stack(vectors).double().mul_(seen))


def client_weights(cosines: Tensor) -> Tensor:
    """w for (N, N) float64 cosines between clients; all 0 where each is a copy of another.

    Example:
        >>> client_weights(torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]]))
        tensor([0.7877, 0.7877, 1.0000])
    """
    cosines = cosines.clone().fill_diagonal_(0)
    nearest = cosines.amax(1)  # 0 for who is like nobody, because of the diagonal
    pardoned = torch.where(nearest[:, None] < nearest, cosines * nearest[:, None] / nearest, cosines)
    alone = (1 - pardoned.amax(1)).clamp(0, 1)
    best = alone.max()
    return ((alone / best).logit() + 0.5).clamp(0, 1) if best > 0 else torch.zeros_like(alone)
