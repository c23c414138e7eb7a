"""LASA: clip, make sparse, and check lengths and signs of every parameter tensor by itself.

J. Xu, Z. Zhang, R. Hu, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model Aggregation",
WACV 2025, https://arxiv.org/abs/2409.01435.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.filtering import check_enough, lower_median, mz_scores
from fl_lightning.aggregators.norm_clipping import clip_factors
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.kth_largest import kth_largest
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class LASA(Aggregator):
    """A(G)_l = (1 / |B_l|) sum over the clients B_l that pass both checks of tensor l of their clipped g_i,l. Unweighted.

    1. Clip: g_i <- g_i min(1, M / ||g_i||), M the median norm of all N updates, of the two middle ones the lower.
    2. For the checks alone, make it sparse: u_i is g_i with only those entries of matrices and filters (parameter tensors of
       more than one dimension) whose magnitude is above the k-th largest of all such entries of the client, k =
       floor((1 - s) m) of m. Vectors stay as they are.
    3. For every parameter tensor l, ||u_i,l|| and the share of positive among the non-zero entries of u_i,l, 1/2 if there are
       none, are compared between clients: i passes if both lie less than `lambda_n` and `lambda_s` standard deviations (of N,
       not N - 1) from their medians. Where all N are equal up to rounding all pass.
    4. B_l are those who pass; all clients if nobody does.

    The k-th largest entry itself and what ties with it are dropped, so k - 1 entries at most are left; with s = 0 none is.
    Buffers are combined by the coordinate median.

    Bounds: meant for f < N/2. Made and tested against untargeted attacks. A client may be in for one tensor and out for the
    next. A run is refused if N < 3: of two clients both are one standard deviation away from the median. Rows without a model,
    as a plain tensor has them, are one vector, of which nothing is dropped.

    Verdict: the share of the coordinates in which the client was used.

    Args:
        sparsity: s, the share of the entries of matrices and filters that the checks do not see, in [0, 1).
        lambda_n: for norms, more than 0. The authors have 1 for CIFAR, 2 for other data.
        lambda_s: for signs, more than 0.
        average: what B_l is averaged of: the `dense` clipped updates, as the paper says, or the `sparsified` ones, which the
            authors' code averages, as it makes them sparse in place.

    Differs from the paper: the share of positive entries takes the place of (1 + (1 - s) sum of signs / number of signs) / 2,
    of which it is a linear function, so that deviations in units of their spread are the same. Thresholds are found before
    clipping, which changes no order. Where numbers are all equal the authors' code divides 0 by 0 and lets nobody pass, which
    lets in all clients, also those who fail the other check.

    Example:
        >>> import torch
        >>> LASA()(torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0], [-90.0, 90.0]]))
        tensor([1.5000, 1.5000])
    """

    def __init__(
        self,
        *,
        sparsity: float = 0.3,
        lambda_n: float = 1.0,
        lambda_s: float = 1.0,
        average: Literal["dense", "sparsified"] = "dense",
    ) -> None:
        super().__init__()
        if not 0 <= sparsity < 1:
            raise ConfigurationError(f"LASA.sparsity must lie in [0, 1), got {sparsity}")
        for name, bound in (("lambda_n", lambda_n), ("lambda_s", lambda_s)):
            if not bound > 0:
                raise ConfigurationError(f"LASA.{name} must be more than 0, got {bound}")
        if average not in ("dense", "sparsified"):
            raise ConfigurationError(f"LASA.average must be 'dense' or 'sparsified', got {average!r}")
        self.sparsity = sparsity
        self.lambda_n = lambda_n
        self.lambda_s = lambda_s
        self.average = average

    def check(self, num_clients: int) -> None:
        check_enough("LASA", num_clients, 3, f"of {num_clients} clients none is nearer to the median than another")

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        norms = shard.norms()
        factors = clip_factors(norms, lower_median(norms))
        layer_of = self.layer_of(shard)
        thresholds = self.thresholds(shard, layer_of)
        used = self.used(shard, factors, layer_of, thresholds)
        sizes = torch.tensor([layer.size for layer in shard.layers], dtype=torch.float64)
        shard.judge(used.double() @ sizes / sizes.sum() if sizes.any() else torch.ones_like(factors), most=1.0)
        out = torch.zeros(shard.width, device=shard.weights.device)
        for layer, columns in shard.layer_slices():
            members = used[:, layer]
            averaged = self.averaged(shard, layer, columns, thresholds)
            out[columns] = averaged.combine(factors * members / members.sum())
        return out

    def layer_of(self, shard: UpdateShard) -> Tensor:
        """(S,) int64, the parameter tensor that each coordinate belongs to."""
        found = torch.zeros(shard.width, dtype=torch.int64, device=shard.weights.device)
        for layer, columns in shard.layer_slices():
            found[columns] = layer
        return found

    def thresholds(self, shard: UpdateShard, layer_of: Tensor) -> Tensor:
        """(number of layers, N) float32: entries of a tensor of no larger magnitude are dropped; below 0 where none is."""
        thinned = torch.tensor([len(layer.shape) > 1 for layer in shard.layers])
        found = torch.full((len(shard.layers), shard.num_clients), -1.0, device=layer_of.device)
        entries = sum(layer.size for layer in shard.layers if len(layer.shape) > 1)
        if self.sparsity and entries:
            count = math.floor((1 - self.sparsity) * entries + GUARD)
            thinned = thinned.to(layer_of.device)
            found[thinned] = kth_largest(shard, count, thinned[layer_of])[0]
        return found

    def used(self, shard: UpdateShard, factors: Tensor, layer_of: Tensor, thresholds: Tensor) -> Tensor:
        """(N, number of layers) bool on CPU, whom each tensor is averaged of."""

        def statistics(values: Tensor, layers: Tensor) -> Tensor:
            """(N, c) float64 and (c,) int64 -> (3, N, number of layers): squares, signs and non-zero entries of u."""
            sums = values.new_zeros(3, len(values), len(shard.layers))
            at = 0
            present, widths = layers.unique_consecutive(return_counts=True)
            for layer, width in zip(present.tolist(), widths.tolist(), strict=True):
                part = values[:, at : at + width]
                part = part * (part.abs() > thresholds[layer][:, None])
                sums[:, :, layer] = torch.stack([part.square().sum(1), part.sign().sum(1), part.sign().abs().sum(1)])
                at += width
            return sums

        squares, signs, entries = shard.reduce(statistics, layer_of).cpu()
        norms = squares.sqrt() * factors[:, None]
        positive = torch.where(entries > 0, (1 + signs / entries.clamp(min=1)) / 2, 0.5)
        passes = (mz_scores(norms) < self.lambda_n) & (mz_scores(positive) < self.lambda_s)
        return passes | ~passes.any(0)

    def averaged(self, shard: UpdateShard, layer: int, columns: slice, thresholds: Tensor) -> UpdateShard:
        """The updates at some of the columns, which belong to one tensor; without what is dropped on request."""
        part = shard.with_rows(torch.zeros(shard.num_clients, 0, device=shard.weights.device))
        pieces = []
        for place, bucket in shard.columns():
            piece = bucket[:, max(0, columns.start - place.start) : max(0, columns.stop - place.start)]
            if self.average == "sparsified":
                piece = torch.where(piece.abs() > thresholds[layer][:, None], piece, 0.0)
            pieces.append(piece)
        part.buckets = pieces
        return part

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)
