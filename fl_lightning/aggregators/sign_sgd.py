"""signSGD with majority vote.

J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar, "signSGD with Majority Vote is Communication Efficient and Fault
Tolerant", ICLR 2019, https://arxiv.org/abs/1810.05291, Algorithm 1.
"""

import math

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard


class SignSGD(Aggregator):
    """A_k = step * sign(sum_i sign(g_ik)), with sign(0) = 0: a zero is no vote, and a tie moves nothing. Unweighted.

    A coordinate that the other N - f clients carry by a margin of m votes keeps its direction if f < m; none ever moves by more
    than `step`. Buffers, which have no use for steps of one length, are combined by the weighted mean.

    Verdict: none, as every client has its vote on every coordinate.

    Args:
        step: length of a coordinate's step, more than 0, in units of the parameters. Results depend on it much as they do on
            Adam's learning rate: 1e-4 to 1e-3 for deep networks, 1e-2 for a small MLP.

    Differs from the paper: clients vote once per round, with their pseudo-gradients, instead of at every step with a gradient's
    momentum; its authors' code counts zero as +1.

    Example:
        >>> import torch
        >>> SignSGD(step=0.5)(torch.tensor([[1.0, 1.0], [2.0, -9.0], [-9.0, 0.0]]))
        tensor([0.5000, 0.0000])
    """

    def __init__(self, *, step: float = 1e-3) -> None:
        super().__init__()
        if not 0 < step < math.inf:
            raise ConfigurationError(f"SignSGD.step must be more than 0 and finite, got {step}")
        self.step = step

    def forward(self, shard: UpdateShard) -> Tensor:
        return shard.map(lambda values: self.step * values.sign().sum(0).sign())  # sums of integers: exact in any order
