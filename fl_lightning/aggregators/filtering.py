"""What rules that keep some clients and turn others away share."""

import logging

import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)

EQUAL = 1e-12
"""Numbers whose standard deviation is at most this share of the largest of them count as equal: the rest is rounding."""

DECIMALS = 9
"""That scores are rounded to before they are compared, so that rounding does not decide who ties with whom or with a bound."""


def check_enough(rule: str, num_clients: int, least: int, otherwise: str) -> None:
    """Raise `ConfigurationError` where a round has fewer clients than a rule can tell apart.

    Args:
        rule: its name.
        num_clients: N.
        least: the fewest that it takes.
        otherwise: what is wrong with N of them, in words with that number in it.
    """
    if num_clients < least:
        raise ConfigurationError(f"{rule}: {otherwise}, it takes {least}; raise model.cohort.clients_per_round")


def lower_median(values: Tensor) -> float:
    """The median of (N,) numbers, of the two middle ones the lower where N is even.

    >>> lower_median(torch.tensor([4.0, 1.0, 3.0, 2.0]))
    2.0
    """
    return float(values.median())


def mz_scores(values: Tensor) -> Tensor:
    """How many standard deviations each number lies from the median: |x_i - median(x)| / std(x), column by column.

    Args:
        values: (N, ...) float64; the standard deviation is that of N numbers, not N - 1.

    Returns:
        (N, ...) float64, rounded to `DECIMALS`; 0 where all N are equal up to rounding.

    Example:
        >>> mz_scores(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])).tolist()
        [0.0, 0.0, 0.0, 0.0, 2.5]
    """
    columns = values.reshape(len(values), -1)
    deviation = columns.std(0, correction=0)
    apart = deviation > EQUAL * columns.abs().amax(0)
    scores = (columns - median(columns)).abs() / torch.where(apart, deviation, 1.0)
    return torch.where(apart, scores, 0.0).round(decimals=DECIMALS).reshape(values.shape)


def shares_of_kept(rule: str, shard: UpdateShard, kept: Tensor, *, weighted: bool = False) -> Tensor:
    """(N,) float64 on CPU: 1 shared out evenly, or by sample counts, among the clients where `kept` ((N,) bool) is true.

    All 0, with a warning, where none of these counts: then there is no update.
    """
    weights = (shard.weights.cpu().double() if weighted else torch.ones(len(kept), dtype=torch.float64)) * kept
    total = float(weights.sum())
    if total == 0:
        log.warning("%s: none of %d clients is left, so the update is zero", rule, len(kept))
        return weights
    return weights / total
