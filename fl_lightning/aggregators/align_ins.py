"""AlignIns: inspect how each update is aligned, with the global model and with the signs on which clients agree.

J. Xu, Z. Zhang, R. Hu, "Detecting Backdoor Attacks in Federated Learning via Direction Alignment Inspection", CVPR 2025,
https://arxiv.org/abs/2503.07978.
"""

import math

import torch
from torch import Tensor

from fl_lightning.aggregators import distances
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.filtering import check_enough, lower_median, mz_scores, shares_of_kept
from fl_lightning.aggregators.norm_clipping import clip_factors
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.kth_largest import kth_largest
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class AlignIns(Aggregator):
    """A(G) = sum over the clients that pass both checks of a_i g_i min(1, M / ||g_i||), a_i = n_i / sum of their n_j.

    Two numbers say how client i's change of the model, delta_i = -g_i, is aligned:

        TDA_i  = cos(delta_i, w), w the global model's parameters that the clients started from;
        MPSA_i = the share of the k = floor(s d) coordinates (one at least) where |delta_i| is largest at which its sign is the
                 principal one, p = sign(sum_j sign(delta_j)). p is 0 where votes tie: only an exact 0 agrees there.

    Client i passes if |TDA_i - median(TDA)| < `lambda_c` * std(TDA) and |MPSA_i - median(MPSA)| < `lambda_s` * std(MPSA), with
    standard deviations of N, not N - 1. Where all N numbers are equal up to rounding all pass. M is the median norm of those
    who pass, of the two middle ones the lower. If none passes the update is zero, and a warning says so. Of entries that tie
    for the last of the k places their average counts. A zero update has TDA 0. Buffers are combined by the coordinate median.

    Bounds: meant for f < N/2. Strict: of N benign clients with normal numbers about .68 pass each check at lambda 1, so about
    half of them both. The mean is weighted, the vote is not. A run is refused if N < 3: of two clients both are one standard
    deviation away from the median.

    The rule reads the global weights from the shard (`shard.broadcast`), which a federation provides. A plain tensor has none:
    make a shard of it, as below.

    Verdict: 0 for who fails, for the others the factor min(1, M / ||g_i||).

    Args:
        sparsity: s, the share of each client's coordinates whose signs are compared, in (0, 1].
        lambda_c: for the alignment with the model, more than 0.
        lambda_s: for the alignment of signs, more than 0.
        weighted: weight by sample counts; otherwise a_i is the same for all who pass. An attacker may inflate its count.

    Differs from the paper: buffers take no part in the three statistics, where the authors' code has the whole state of the
    model in them, counters too. That code divides 0 by 0 where all MPSA are equal and then keeps nobody.

    Example:
        >>> import torch
        >>> rows = [[1.0, 2.0, -1.0, 0.5], [1.0, 1.0, -2.0, -0.5], [0.5, 2.0, -1.0, 1.0], [1.0, 1.5, 0.2, 0.5]]
        >>> shard = UpdateShard.from_updates(-torch.tensor([*rows, [-3.0, 4.0, 2.0, -2.0]]))
        >>> shard.broadcast = torch.tensor([1.0, 2.0, -1.0, 0.5])
        >>> AlignIns(sparsity=0.5)(shard)
        tensor([-0.8750, -1.6250,  0.9500, -0.3750])
    """

    def __init__(self, *, sparsity: float = 0.3, lambda_c: float = 1.0, lambda_s: float = 1.0, weighted: bool = True) -> None:
        super().__init__()
        if not 0 < sparsity <= 1:
            raise ConfigurationError(f"AlignIns.sparsity must lie in (0, 1], got {sparsity}")
        for name, bound in (("lambda_c", lambda_c), ("lambda_s", lambda_s)):
            if not bound > 0:
                raise ConfigurationError(f"AlignIns.{name} must be more than 0, got {bound}")
        self.sparsity = sparsity
        self.lambda_c = lambda_c
        self.lambda_s = lambda_s
        self.weighted = weighted

    def check(self, num_clients: int) -> None:
        check_enough("AlignIns", num_clients, 3, f"of {num_clients} clients none is nearer to the median than another")

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        norms = shard.norms()
        kept = mz_scores(self.model_alignment(shard, norms)) < self.lambda_c
        kept &= mz_scores(self.sign_alignment(shard)) < self.lambda_s
        factors = clip_factors(norms, lower_median(norms[kept])) if kept.any() else torch.zeros_like(norms)
        shard.judge(kept * factors, most=1.0)
        return shard.combine(shares_of_kept("AlignIns", shard, kept, weighted=self.weighted) * factors)

    def model_alignment(self, shard: UpdateShard, norms: Tensor) -> Tensor:
        """(N,) float64 on CPU, TDA.

        Raises:
            ConfigurationError: if the shard brings no global weights.
        """
        weights = shard.broadcast
        if weights is None:
            raise ConfigurationError(
                "AlignIns compares updates with the global model's weights, which a plain tensor does not bring; use it in a "
                "federation, or make a shard, set shard.broadcast to the (d,) weights and call the rule with it"
            )
        products = shard.reduce(lambda values, w: (values * w.double()).sum(1), weights).cpu()
        length = shard.with_rows(weights[None]).norms()
        lengths = norms * length
        return (-products / torch.where(lengths > 0, lengths, 1.0)).round(decimals=distances.DECIMALS)

    def sign_alignment(self, shard: UpdateShard) -> Tensor:
        """(N,) float64 on CPU, MPSA, which is the same for g and -g."""
        if shard.num_coordinates == 0:
            return torch.zeros(shard.num_clients, dtype=torch.float64)
        count = max(1, math.floor(self.sparsity * shard.num_coordinates + GUARD))
        thresholds, places = kth_largest(shard, count)
        principal = shard.map(lambda values: values.sign().sum(0).sign())
        counts = torch.zeros(3, shard.num_clients, dtype=torch.int64, device=principal.device)
        for columns, bucket in shard.columns():
            for i, row in enumerate(bucket):
                agrees = row.sign() == principal[columns]
                size = row.abs()
                ties = size == thresholds[i]
                counts[:, i] += torch.stack([(agrees & (size > thresholds[i])).sum(), (agrees & ties).sum(), ties.sum()])
        above, agreeing, tied = shard.count(counts).double()
        return ((above + places * agreeing / tied) / count).cpu()

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)
