"""DeepSight: cluster clients by how the output layer and the outputs have changed, and judge whole clusters.

P. Rieger, T. D. Nguyen, M. Miettinen, A.-R. Sadeghi, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep
Model Inspection", NDSS 2022, https://arxiv.org/abs/2201.00763.
"""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.density import OUTLIER, density_clusters
from fl_lightning.aggregators.distances import DECIMALS, cosine_distances
from fl_lightning.aggregators.filtering import DECIMALS as SCORE_DECIMALS
from fl_lightning.aggregators.filtering import check_enough, shares_of_kept
from fl_lightning.aggregators.norm_clipping import clip_factors, median_norm
from fl_lightning.checked import whole
from fl_lightning.data.probe import Noise, ProbeBatches
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.predicting import class_probabilities, predict
from fl_lightning.updates.layers import Layer, output_layer
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard

SMALLEST = torch.finfo(torch.float32).tiny
"""Probabilities count as this at least, so that their ratios are finite."""


class DeepSight(Aggregator):
    """A(G) = (1 / K) sum over the K clients of accepted clusters of g_i min(1, M / ||g_i||). Unweighted.

    M is the median norm of all N updates. With W (C, h) and b (C,) the output layer's part of g_i,

    1. NEUP: E_c = |b_c| + sum_h |W_c,h|, and e_c = E_c^2 / sum of all E^2: how much each class was trained;
    2. i is suspicious if TE_i <= median(TE) / 2, TE_i the number of classes with e_c > max(`exceeding`, 1 / C) max(e): few
       classes were trained, as for a backdoor;
    3. DDif: for each of `probe_seeds` sets of `probe_samples` inputs of uniform noise from [0, 1), the mean over the inputs of
       p_i / p, (C,), where p_i and p are the probabilities that the submitted and the global model give;
    4. clients are clustered by HDBSCAN on the Euclidean distances between the e, on those between DDifs, once for each set, and
       on 1 - cos(b_i, b_j). Each clustering has clients at distance 0, if they share a cluster, or 1. Distances are averaged
       over the sets, then over the three kinds, and clients are clustered by HDBSCAN on what comes out;
    5. a cluster is accepted if its share of suspicious clients is less than `max_suspicious`.

    An outlier of a clustering is at distance 1 from everybody; in the end it is judged as a cluster of one. If nobody is
    accepted the update is zero, and a warning says so. A client whose output layer stays as it is has TE 0. One whose outputs
    are not finite is an outlier by DDif. Buffers are combined by the coordinate median.

    Bounds: no f is assumed. It takes a backdoor whose data have fewer classes than benign clients' data have: among clients
    with few classes each it cannot tell. With two classes it cannot either: under cross entropy both rows of the output layer
    move by the same amount, in opposite directions, so TE is 2 for everybody, nobody is suspicious, and what is left is the
    mean of updates clipped to the median norm. A run is refused if N < 3, or if the model has no output layer of two classes or
    more with a bias. A plain tensor has no layers, so only a shard can be aggregated, without DDif where there are no models to
    look at.

    Cost: `probe_seeds` * `probe_samples` forward passes of every model in every round, 60,000 by default, which on a CPU is
    more than training takes for all but small networks. For ten classes a tenth is enough.

    A reader might think that suspicious clients are turned away: they only vote within their cluster. Noise from [0, 1) does
    not look like normalised data, and need not.

    Verdict: 0 for who is not accepted, for the others the factor min(1, M / ||g_i||).

    Args:
        probe_samples: inputs of a set, at least 0; with 0 the models are not looked at, and two kinds of distances are
            averaged.
        probe_seeds: sets of them, at least 1.
        exceeding: from 0 to 1; with 0 the bound is max(e) / C, as three of four re-implementations have it. It matters for more
            than a hundred classes.
        max_suspicious: tau, more than 0 and at most 1.
        min_cluster_size: of HDBSCAN, at least 2.
        min_samples: of HDBSCAN, at least 1.
        allow_single_cluster: whether HDBSCAN may find that all clients are one cluster. If not, clients that are all alike are
            outliers.
        outliers: whether an outlier of the last clustering is `judged` by itself, or `dropped`, as in two re-implementations.
        output_layer: the name in the client of the layer that gives the logits, such as `net.4`; left out, the last two
            parameter tensors are taken.

    Differs from the paper: there is no code of the authors; steps and constants are from memory and from four
    re-implementations, which do not agree on HDBSCAN's settings. With the library's default, a least size of five, ten ordinary
    clients are all outliers. All four have faults that are not here: some accept those clusters whose share of suspicious
    clients is high, give rows of distances to HDBSCAN as if they were points, average the sets of DDifs to one number, put two
    outliers into one cluster, or take ratios of logits, which change their sign. Equality counts as printed: a class at the
    bound does not exceed it, and a client at half of the median is suspicious.

    Example:
        >>> import torch
        >>> from fl_lightning.updates.layers import layers_of
        >>> shard = UpdateShard.from_updates([[1.0, -1, 1, 1], [1, -1, 1, 1], [1, 1, 1, 1], [5, 0, 3, 0]])
        >>> shard.layers = layers_of(["net.weight", "net.bias"], [(2, 1), (2,)])
        >>> DeepSight(probe_samples=0)(shard)
        tensor([ 1.0000, -0.3333,  1.0000,  1.0000])
    """

    def __init__(
        self,
        *,
        probe_samples: int = 20_000,
        probe_seeds: int = 3,
        exceeding: float = 0.01,
        max_suspicious: float = 1 / 3,
        min_cluster_size: int = 2,
        min_samples: int = 1,
        allow_single_cluster: bool = True,
        outliers: Literal["judged", "dropped"] = "judged",
        output_layer: str | None = None,
    ) -> None:
        super().__init__()
        self.probe_samples = whole("DeepSight.probe_samples", probe_samples, 0)
        self.probe_seeds = whole("DeepSight.probe_seeds", probe_seeds, 1)
        if not 0 <= exceeding <= 1:
            raise ConfigurationError(f"DeepSight.exceeding must lie in [0, 1], got {exceeding}")
        if not 0 < max_suspicious <= 1:
            raise ConfigurationError(f"DeepSight.max_suspicious must lie in (0, 1], got {max_suspicious}; 1/3 is usual")
        if outliers not in ("judged", "dropped"):
            raise ConfigurationError(f"DeepSight.outliers must be 'judged' or 'dropped', got {outliers!r}")
        self.exceeding = exceeding
        self.max_suspicious = max_suspicious
        self.outliers = outliers
        self.output_layer = output_layer
        self.min_cluster_size = whole("DeepSight.min_cluster_size", min_cluster_size, 2)
        self.min_samples = whole("DeepSight.min_samples", min_samples, 1)
        self.allow_single_cluster = allow_single_cluster
        self.probe = Noise(samples=self.probe_seeds * self.probe_samples) if self.probe_samples else None
        self._sent: list[Tensor] = []  # what the global model makes of the probe, while models are examined

    def check(self, num_clients: int) -> None:
        check_enough("DeepSight", num_clients, 3, f"of {num_clients} clients none can be told from the others")

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.outputs(layers)

    def outputs(self, layers: Sequence[Layer]) -> tuple[Layer, Layer]:
        """The output layer's weight and bias."""
        weight, bias = output_layer(layers, "DeepSight", self.output_layer)
        if bias.size < 2:
            raise ConfigurationError(
                f"DeepSight compares how much each class was trained, but {weight.name} gives one logit; let the model have two"
            )
        return weight, bias

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        energies, biases = output_updates(shard, *self.outputs(shard.layers))
        suspicious = self.suspicious(energies)
        examined = shard.examined if self.probe_samples else None
        self._sent = []
        division = None if examined is None else examined.cpu().double().unflatten(1, (self.probe_seeds, -1))
        labels = self.cluster(self.distances(energies, biases, division))
        accepted = self.accepted(labels, suspicious)
        norms = shard.norms()
        factors = accepted * clip_factors(norms, median_norm(norms))
        shard.judge(factors, most=1.0)
        return shard.combine(shares_of_kept("DeepSight", shard, accepted) * factors)

    # ---- what is measured ------------------------------------------------------------------------------------------------

    def suspicious(self, energies: Tensor) -> Tensor:
        """(N,) bool, for (N, C) energies."""
        most = energies.amax(1, keepdim=True)
        relative = (energies / torch.where(most > 0, most, 1.0)).square().round(decimals=SCORE_DECIMALS)
        bound = round(max(self.exceeding, 1 / energies.shape[1]), SCORE_DECIMALS)
        exceedings = (relative > bound).sum(1).double()
        return exceedings <= median_norm(exceedings) / 2

    def examine_broadcast(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> None:
        self._sent = [probabilities(module, batch) for batch in probe]

    def examine(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> Tensor:
        """(seeds * C,), the DDifs."""
        sums, at = torch.zeros(self.probe_seeds, self._sent[0].shape[1], dtype=torch.float64), 0
        for batch, sent in zip(probe, self._sent, strict=True):
            ratios = (probabilities(module, batch) / sent).cpu()
            for seed in range(self.probe_seeds):  # a batch may have inputs of two sets
                first = seed * self.probe_samples - at
                sums[seed] += ratios[max(0, first) : max(0, first + self.probe_samples)].sum(0)
            at += len(ratios)
        return (sums / self.probe_samples).flatten()

    # ---- clusters ----------------------------------------------------------------------------------------------------

    def distances(self, energies: Tensor, biases: Tensor, division: Tensor | None) -> Tensor:
        """(N, N) float64, from 0 to 1, in which clients are clustered at last.

        Args:
            energies: (N, C) float64.
            biases: (N, C) float64, the updates of the output layer's bias.
            division: (N, sets, C) float64 DDifs; None to leave them out.
        """
        squares = (energies / energies.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)).square()
        neups = squares / squares.sum(1, keepdim=True).clamp(min=1)
        cosines = cosine_distances(biases @ biases.T).round(decimals=DECIMALS)
        kinds = [self.apart(euclidean(neups).round(decimals=DECIMALS)), self.apart(cosines)]
        if division is not None:
            kinds.append(torch.stack([self.apart_by(rows) for rows in division.unbind(1)]).mean(0))
        return torch.stack(kinds).mean(0)

    def apart_by(self, rows: Tensor) -> Tensor:
        """`apart` for (N, C) rows, of which those that are not finite are outliers."""
        finite = rows.isfinite().all(1)
        apart = 1 - torch.eye(len(rows), dtype=torch.float64)
        apart[finite[:, None] & finite] = self.apart(euclidean(rows[finite])).flatten()
        return apart

    def apart(self, distances: Tensor) -> Tensor:
        """(N, N) float64, 0 for clients in one cluster and 1 for others."""
        labels = self.cluster(distances)
        together = (labels[:, None] == labels) & (labels != OUTLIER)
        return (~together).double().fill_diagonal_(0)

    def cluster(self, distances: Tensor) -> Tensor:
        """(N,) int64, labels by HDBSCAN."""
        return density_clusters(
            distances,
            min_cluster_size=self.min_cluster_size,
            min_samples=self.min_samples,
            allow_single_cluster=self.allow_single_cluster,
        )

    def accepted(self, labels: Tensor, suspicious: Tensor) -> Tensor:
        """(N,) bool, whose clusters are accepted."""
        accepted = ~suspicious if self.outliers == "judged" else torch.zeros_like(suspicious)
        for label in labels.unique().tolist():
            if label != OUTLIER:
                members = labels == label
                accepted[members] = bool(suspicious[members].double().mean() < self.max_suspicious)
        return accepted

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def output_updates(shard: UpdateShard, weight: Layer, bias: Layer) -> tuple[Tensor, Tensor]:
    """(N, C) float64 on CPU each: the energies of the output layer's updates, and those of its bias."""
    classes = bias.size
    of_class = torch.full((shard.width,), -1, dtype=torch.int64, device=shard.weights.device)
    for layer, first in ((weight, 0), (bias, classes)):
        columns = layer.columns(shard.start, shard.width)
        within = torch.arange(columns.start, columns.stop, device=of_class.device) + shard.start - layer.start
        of_class[columns] = first + within // (layer.size // classes)

    def sums(values: Tensor, of_class: Tensor) -> Tensor:
        """(N, c) float32 and (c,) int64 -> (2, N, 2 C) float64: of magnitudes and of values, weight's and bias's."""
        inside = of_class >= 0
        if not inside.any():
            return torch.zeros(2, len(values), 2 * classes, dtype=torch.float64, device=values.device)
        chosen = values[:, inside].double()
        return torch.stack([chosen.abs(), chosen]) @ one_hot(of_class[inside], 2 * classes).double()

    magnitudes, values = shard.reduce(sums, of_class, dtype=torch.float32).cpu()
    return magnitudes[:, :classes] + magnitudes[:, classes:], values[:, classes:]


def probabilities(module: L.LightningModule, batch: Any) -> Tensor:
    """(b, C) float64 class probabilities, each at least `SMALLEST`."""
    return class_probabilities(predict(module, batch)).clamp(min=SMALLEST).double()


def euclidean(rows: Tensor) -> Tensor:
    """(N, N) float64, distances between (N, q) rows."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
