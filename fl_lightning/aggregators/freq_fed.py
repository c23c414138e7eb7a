"""FreqFed: cluster clients by the low frequencies of their updates, and average the majority.

H. Fereidooni, A. Pegoraro, P. Rieger, A. Dmitrienko, A.-R. Sadeghi, "FreqFed: A Frequency Analysis-Based Approach for
Mitigating Poisoning Attacks in Federated Learning", NDSS 2024, https://arxiv.org/abs/2312.04432.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl_lightning.aggregators import distances
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import cosine_distances
from fl_lightning.aggregators.filtering import check_enough, shares_of_kept
from fl_lightning.aggregators.majority_cluster import majority_cluster
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.layers import Layer, output_layer
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.whole_rows import of_whole_rows


class FreqFed(Aggregator):
    """A(G) = mean of the clients in the one cluster that has more than half of them. Unweighted.

    1. Every parameter tensor of an update, as a matrix of h rows (its first axis) and w columns (all others), is transformed
       by the two-dimensional, orthonormal discrete cosine transform of type II.
    2. Kept are the entries with row + column <= floor(min(h, w) / 2), counted from 0: the low frequencies, about an eighth of
       a square matrix. Of a vector, as a bias, that is one number, its sum over sqrt(n).
    3. All that is kept of an update is one vector. HDBSCAN on the cosine distances between those of the clients, with a least
       size of floor(N/2) + 1, finds one cluster or none; if none, all clients are averaged.

    Only the kept numbers, not the updates, decide who is averaged. Whole updates travel to ranks for the transform, one at a
    time on each, and what is kept travels back by coordinates; that costs a second exchange and O(N d log d). A rank holds its
    share of what is kept beside its shard. Where nothing is kept but zeros a client is at distance 1 from all others. Buffers
    are combined by the coordinate median.

    Bounds: f < N/2, and attackers whose low frequencies differ. Up to N - floor(N/2) - 1 clients are left out, malicious or
    not. A run is refused if N < 3, where no cluster could leave anybody out.

    Verdict: 1 for who is averaged, 0 for who is not.

    Args:
        layers: `all` parameter tensors, or the `last` two, weight and bias of the output layer.
        transform: `2d`, as above; or `1d`: what is looked at is one vector of n numbers, in storage order, transformed as it
            is and without normalisation (so that entry 0 counts sqrt(2) times as much), of which the first floor(n/2) + 1
            entries are kept.

    A reader would assume frequencies of the function that the network computes; they are those along the order in which
    parameters are stored, so that other orders of a layer's units, which change no function, give other frequencies. A plain
    tensor without shapes is one vector, of which `2d` keeps one number, the sign of the update's sum: use `1d` there.

    Differs from the paper: there is no code of the authors, and three published re-implementations disagree. The default is
    the one of them that is nearest to the paper as it is remembered, by `1d` and `last` one comes near the others. Those
    transform clients one after the other in one growing vector, take models in place of updates, cluster rows of the distance
    matrix as if they were points, or average the outliers where these are the most: none of that is done here.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 1.0, 0.9], [1.0, 0.9, 1.0], [0.9, 1.0, 1.0], [9.0, -9.0, -9.0]])
        >>> FreqFed(transform="1d")(updates)
        tensor([0.9667, 0.9667, 0.9667])
    """

    def __init__(self, *, layers: Literal["all", "last"] = "all", transform: Literal["2d", "1d"] = "2d") -> None:
        super().__init__()
        if layers not in ("all", "last"):
            raise ConfigurationError(f"FreqFed.layers must be 'all' or 'last', got {layers!r}")
        if transform not in ("2d", "1d"):
            raise ConfigurationError(f"FreqFed.transform must be '2d' or '1d', got {transform!r}")
        self.layers = layers
        self.transform = transform

    def check(self, num_clients: int) -> None:
        check_enough("FreqFed", num_clients, 3, f"a cluster of more than half of {num_clients} clients leaves nobody out")

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.looked_at(layers)

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        looked_at = self.looked_at(shard.layers)
        kept = of_whole_rows(shard, lambda update: self.low_frequencies(update, looked_at), self.number_kept(looked_at))
        members = majority_cluster(cosine_distances(kept.gram().cpu()).round(decimals=distances.DECIMALS))
        shard.judge(members, most=1.0)
        return shard.combine(shares_of_kept("FreqFed", shard, members))

    def looked_at(self, layers: Sequence[Layer]) -> list[Layer]:
        """The parameter tensors whose frequencies are compared.

        Raises:
            ConfigurationError: there is no output layer.
        """
        chosen = layers if self.layers == "all" else output_layer(layers, "FreqFed.layers 'last'")
        return [layer for layer in chosen if layer.size]

    def number_kept(self, layers: Sequence[Layer]) -> int:
        """How many numbers of an update are kept."""
        if self.transform == "1d":
            size = sum(layer.size for layer in layers)
            return size // 2 + 1 if size else 0
        return sum(int(low(*as_matrix(layer)).sum()) for layer in layers)

    def low_frequencies(self, update: Tensor, layers: Sequence[Layer]) -> Tensor:
        """What is kept of a whole update, (d,) float32: (q,) float32, in units of the power of 2 above its largest entry."""
        from scipy.fft import dct  # slow to import

        numbers = update.cpu().numpy()
        parts = [numbers[layer.start : layer.stop] for layer in layers]
        most = max((np.abs(part).max() for part in parts), default=np.float32(0))
        scaled = [np.ldexp(part, -np.frexp(most)[1]) for part in parts]  # sums of the loudest would not be finite
        if not scaled:
            found = np.zeros(0, np.float32)
        elif self.transform == "1d":
            found = dct(np.concatenate(scaled))[: self.number_kept(layers)]
        else:
            matrices = [part.reshape(as_matrix(layer)) for part, layer in zip(scaled, layers, strict=True)]
            found = np.concatenate([low_frequencies_of(matrix) for matrix in matrices])
        return torch.from_numpy(found.astype(np.float32)).to(update.device)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def as_matrix(layer: Layer) -> tuple[int, int]:
    """h and w of a parameter tensor as a matrix: the first axis by all others; one row for a vector.

    >>> [as_matrix(Layer("", shape, 0)) for shape in [(64, 3, 3, 3), (10,), ()]]
    [(64, 27), (1, 10), (1, 1)]
    """
    h = layer.shape[0] if len(layer.shape) > 1 else 1
    return h, layer.size // h


def low(h: int, w: int) -> np.ndarray:
    """Which entries of the first floor(min(h, w) / 2) + 1 rows and columns are kept, bool; of the others none is.

    >>> low(5, 4).astype(int).tolist()
    [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    """
    places = np.arange(min(h, w) // 2 + 1)
    return places[:, None] + places <= places[-1]


def low_frequencies_of(matrix: np.ndarray) -> np.ndarray:
    """The entries of the orthonormal cosine transform of (h, w) numbers that `low` says, row by row.

    >>> low_frequencies_of(np.array([[1.0, 2.0], [3.0, 4.0]])).round(6).tolist()
    [5.0, -1.0, -2.0]
    """
    from scipy.fft import dct

    chosen = low(*matrix.shape)
    if len(chosen) == 1:
        return matrix.sum(keepdims=True).ravel() / np.sqrt(matrix.size)
    by_rows = dct(matrix, axis=1, norm="ortho")[:, : len(chosen)]  # the others need not be transformed further
    return dct(by_rows, axis=0, norm="ortho")[: len(chosen)][chosen]
