"""FLARE: clients vote for those whose models see clean samples as their own does, and votes are weights.

N. Wang, Y. Xiao, Y. Chen, Y. Hu, W. Lou, Y. T. Hou, "FLARE: Defending Federated Learning against Model Poisoning Attacks via
Latent Space Representations", ASIA CCS 2022, https://doi.org/10.1145/3488932.3517395.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import DECIMALS
from fl_lightning.aggregators.norm_clipping import median_norm
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.checked import real
from fl_lightning.data.probe import ProbeBatches
from fl_lightning.errors import ConfigurationError, enumerated
from fl_lightning.modules.predicting import predict
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.layout import parameter_layout
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class FLARE(Aggregator):
    """A(G) = sum_i t_i g_i, t the softmax of v_i / `temperature`, v_i how many clients have i among their nearest. Unweighted.

    R_i, (m, h), is what goes into the layer that gives the logits when the i-th submitted model sees the m samples of the
    server's root set (`data.root`). Each client votes for the floor(`neighbors` * N) others of the smallest

        MMD^2(i, j) = mean of k(a, a') over a != a' in R_i + the same of R_j - 2 mean of k(a, b) over a in R_i, b in R_j,

    k(a, b) = exp(-||a - b||^2 / (2 `sigma`^2)). With one root sample the first two are 0. Clients that tie for the last places
    share these votes evenly. Who gives features that are not finite gets no trust and no vote; if that is everybody the update
    is zero, and a warning says so. Buffers are combined by the coordinate median.

    Bounds: meant for f < N/2. Nobody is turned away: without a vote a client still has the weight of exp(-v / `temperature`)
    beside one with v votes. Votes range over N, so that of twenty clients one or two have nearly all of the weight. A run is
    refused where all would vote for everybody or nobody, as for N < 3.

    Needs `data.root`; about ten samples of each class in the paper. Of a plain tensor there are no models to look at, so it can
    only aggregate a shard that has been examined. N m h numbers travel, and N^2 m^2 kernels are computed on every rank.

    Verdict: the weight t_i, divided by the largest of the round.

    Args:
        neighbors: the share of the clients that each votes for, in (0, 1).
        sigma: the kernel's width, more than 0, in units of features; or `median`, that of the distances between the global
            model's features of different root samples, 1 where it is 0. Where features are many, two samples are farther apart
            than 1, all kernels are 0 and all clients tie: then take the median.
        trust: `softmax`, or `share` for v_i divided by the sum of votes, where nobody's vote means nobody's weight.
        temperature: more than 0; for `softmax`.
        output_layer: the name in the client of the layer that gives the logits, such as `net.4`, a weight (C, h) with or
            without a bias; left out, the one that has the last parameter tensor.

    Differs from the paper: there is no code of the authors. Temperature and size of the root set are from memory, the kernel's
    width is that of two re-implementations, which round the number of neighbours down. An early version of one of them counts
    k(a, a) = 1 in means that leave it out, which changes no vote, and is handed no features, so that it is FedAvg. Its later
    version takes ten samples of one class: `data.root: {samples: 10, biased_class: 5, bias: 1.0}`. Both give ties to whoever
    comes first.

    Example:
        >>> import torch
        >>> rule = FLARE()
        >>> features = torch.tensor([[[0.0], [1.0]], [[0.1], [1.1]], [[0.2], [1.3]], [[5.0], [9.0]]])
        >>> rule.trusts(features, 1.0)  # votes 2, 3, 3, 0
        tensor([0.1522, 0.4136, 0.4136, 0.0206], dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        neighbors: float = 0.5,
        sigma: float | Literal["median"] = 1.0,
        trust: Literal["softmax", "share"] = "softmax",
        temperature: float = 1.0,
        output_layer: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < neighbors < 1:
            raise ConfigurationError(f"FLARE.neighbors must lie in (0, 1), got {neighbors}; .5 is usual")
        if sigma != "median" and not 0 < real("FLARE.sigma", sigma) < math.inf:
            raise ConfigurationError(f"FLARE.sigma must be 'median' or more than 0 and finite, got {sigma!r}")
        if trust not in ("softmax", "share"):
            raise ConfigurationError(f"FLARE.trust must be 'softmax' or 'share', got {trust!r}")
        if not 0 < temperature < math.inf:
            raise ConfigurationError(f"FLARE.temperature must be more than 0 and finite, got {temperature}")
        self.neighbors = neighbors
        self.sigma = sigma
        self.trust = trust
        self.temperature = temperature
        self.output_layer = output_layer
        self.probe = "root"

    def check(self, num_clients: int) -> None:
        count = self.number_of_neighbors(num_clients)
        if not 1 <= count < num_clients - 1:
            raise ConfigurationError(
                f"FLARE: of {num_clients} clients each votes for floor({self.neighbors} * {num_clients}) = {count}, which must "
                f"be at least 1 and less than {num_clients - 1}, all others; change model.cohort.clients_per_round or "
                "FLARE.neighbors"
            )

    def number_of_neighbors(self, num_clients: int) -> int:
        """How many each client votes for."""
        return math.floor(self.neighbors * num_clients + GUARD)

    def check_model(self, layers: Sequence[Layer]) -> None:
        output_weight(layers, self.output_layer)

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        if shard.examined is None or shard.examined_broadcast is None:
            raise ConfigurationError(
                "FLARE compares what submitted models make of root samples, and a plain tensor has no models; train a "
                "federation"
            )
        h = output_weight(shard.layers, self.output_layer).shape[1]
        sent = shard.examined_broadcast.unflatten(0, (-1, h))
        trust = self.trusts(shard.examined.unflatten(1, (-1, h)), self.width(sent))
        shard.judge(trust)
        if not trust.any():
            log.warning("FLARE: no client's features are finite, so the update is zero")
        return shard.combine(trust)

    def examine(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> Tensor:
        """(m * h,), what goes into the output layer."""
        weight = output_weight(parameter_layout(module).layers, self.output_layer)
        name, seen, found = owner(weight), [], []

        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0])

        with module.get_submodule(name).register_forward_pre_hook(see):
            for batch in probe:
                b = len(predict(module, batch))
                if not seen or seen[-1].shape != (b, weight.shape[1]):
                    got = f"{tuple(seen[-1].shape)} for {b} samples" if seen else "nothing"
                    raise ConfigurationError(
                        f"FLARE looks at what goes into {name}, which should be (b, {weight.shape[1]}), but is {got}; name the "
                        "layer that gives the logits by FLARE.output_layer"
                    )
                found.append(seen[-1])
                seen.clear()
        return torch.cat(found).flatten()

    def width(self, features: Tensor) -> float:
        """The kernel's sigma, given the global model's (m, h) features."""
        if self.sigma != "median":
            return float(self.sigma)
        distances = torch.pdist(features.double().cpu())
        middle = median_norm(distances) if len(distances) else 0.0
        return middle if 0 < middle < math.inf else 1.0

    def trusts(self, features: Tensor, sigma: float) -> Tensor:
        """(N,) float64 on CPU, the weights, for (N, m, h) features; they add up to 1, if there is anybody to trust."""
        finite = features.isfinite().flatten(1).all(1).cpu()
        trust = torch.zeros(len(features), dtype=torch.float64)
        n = int(finite.sum())
        if n:
            distances = discrepancies(features[finite.to(features.device)], sigma).cpu()
            got = votes(distances, min(self.number_of_neighbors(len(features)), n - 1))
            if self.trust == "softmax":
                trust[finite] = (got / self.temperature).softmax(0)
            else:
                trust[finite] = got / got.sum() if got.any() else torch.full_like(got, 1 / n)
        return trust

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def output_weight(layers: Sequence[Layer], module: str | None = None) -> Layer:
    """The weight (C, h) of the layer that gives the logits: that of the last parameter tensor, or the one of that name."""
    name = owner(layers[-1]) if module is None else module
    for layer in layers:
        if name and layer.name == f"{name}.weight" and len(layer.shape) == 2:
            return layer
    last = f"{layers[-1].name or 'an unnamed one'} {layers[-1].shape} is the model's last"
    raise ConfigurationError(
        "FLARE looks at what goes into the layer that gives the logits, which must have a parameter 'weight' (C, h), but "
        f"{last if module is None else f'{module} has none'}; name that layer by FLARE.output_layer (the model has "
        f"{enumerated(layer.name or 'unnamed' for layer in layers)}), or use another rule"
    )


def owner(layer: Layer) -> str:
    """The module that has a parameter.

    >>> owner(Layer("net.4.bias", (2,), 0))
    'net.4'
    """
    return layer.name.rpartition(".")[0]


def discrepancies(features: Tensor, sigma: float) -> Tensor:
    """(N, N) float64, MMD^2 between the rows of (N, m, h) features, infinite between a client and itself.

    Example:
        >>> discrepancies(torch.tensor([[[0.0], [1.0]], [[0.0], [3.0]]]), 1.0)
        tensor([[    inf, -0.2588],
                [-0.2588,     inf]], dtype=torch.float64)
    """
    n, m, h = features.shape
    within = torch.zeros(n, dtype=torch.float64, device=features.device)
    between = torch.full((n, n), torch.inf, dtype=torch.float64, device=features.device)
    for i in range(n):
        own = features[i].double()
        within[i] = kernels(own, own, sigma).fill_diagonal_(0).sum() / max(1, m * (m - 1))
        means = kernels(own, features[:i].double().reshape(i * m, h), sigma).reshape(m, i, m).mean((0, 2))
        between[i, :i] = between[:i, i] = -2 * means
    return (within[:, None] + within + between).round(decimals=DECIMALS)


def kernels(some: Tensor, others: Tensor, sigma: float) -> Tensor:
    """(m, l) float64, k(a, b) for the rows of (m, h) and (l, h)."""
    squares = some.square().sum(1)[:, None] + others.square().sum(1) - 2 * some @ others.T
    return squares.clamp_(min=0).div_(sigma).div_(-2 * sigma).exp_()


def votes(distances: Tensor, count: int) -> Tensor:
    """(N,) float64, how many rows of (N, N) distances have a client among their `count` smallest; who ties shares what is left.

    Example:
        >>> inf = float("inf")
        >>> votes(torch.tensor([[inf, 1.0, 2.0], [1.0, inf, 1.0], [2.0, 1.0, inf]]), 1)
        tensor([0.5000, 2.0000, 0.5000], dtype=torch.float64)
    """
    if count == 0:
        return torch.zeros(len(distances), dtype=torch.float64)
    last = distances.kthvalue(count, dim=1).values[:, None]
    nearer, tied = distances < last, distances == last
    shared = (count - nearer.sum(1)) / tied.sum(1).double()
    return (nearer + tied * shared[:, None]).sum(0)
