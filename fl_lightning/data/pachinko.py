"""Label skew along a hierarchy of classes: the Pachinko allocation, by which Fed-CIFAR-100 is dealt out.

S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan, "Adaptive Federated Optimization",
ICLR 2021, https://arxiv.org/abs/2003.00295, appendix (creating a federated CIFAR-100). The method is named after W. Li,
A. McCallum, "Pachinko Allocation: DAG-Structured Mixture Models of Topic Correlations", ICML 2006,
https://people.cs.umass.edu/~mccallum/papers/pam-icml06.pdf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.data.label_counts import dealt_by, dirichlet_shares
from fl_lightning.data.label_skew import take_all
from fl_lightning.data.partition import CountedPartition, checked_keys, enough, positive
from fl_lightning.errors import ConfigurationError


class Pachinko(CountedPartition):
    """Each client has its own distributions of coarse classes and, within each, of classes; up to one, all are of equal size.

    A client draws q ~ Dir(alpha, ..., alpha) over the coarse classes and, for every coarse class, q_c ~ Dir(beta, ..., beta)
    over its classes. Then it draws, without replacement, a coarse class from q, a class from its q_c, and a sample of that
    class that nobody has. A class of which none is left is dropped from q_c, a coarse class of which none is left from q, and
    what remains is renormalised. All n samples are dealt out, so the last clients get what the others left.

    Keys of the data are the coarse classes, as those of `CIFAR100`. With the defaults and its 50,000 training images this is
    the training half of Fed-CIFAR-100: 500 clients of 100.

    Args:
        num_clients: number of clients N, from 1 to n. The first n mod N clients have one sample more than the others.
        alpha: concentration over coarse classes, more than 0; the smaller, the fewer of them a client holds.
        beta: concentration over the classes of a coarse one, more than 0.

    Raises:
        ConfigurationError: if there are fewer samples than clients, no keys, or a class that occurs with several keys.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = Pachinko(num_clients=20)(targets, torch.Generator().manual_seed(0), targets // 5)
        >>> {len(part) for part in parts}, len((targets[parts[0]] // 5).unique())
        ({50}, 1)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 500, alpha: float = 0.1, beta: float = 10.0) -> None:
        super().__init__(num_clients)
        self.alpha = positive("alpha", alpha, "0.1 is usual, more is more even")
        self.beta = positive("beta", beta, "10 is usual, more is more even")

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        N, n = self.num_clients, len(targets)
        keys = checked_keys("Pachinko", targets, keys)
        enough(n, N, N, 1)
        place, left = targets.unique(return_inverse=True, return_counts=True)[1:]
        families = _families(targets, keys)
        counts = torch.zeros(N, len(left), dtype=torch.int64)
        for client in range(N):
            counts[client] = self._draw(left, families, n // N + (client < n % N), generator)
        return dealt_by(place, counts, generator)

    def _draw(self, left: Tensor, families: list[Tensor], wanted: int, generator: torch.Generator) -> Tensor:
        """How many samples of each class a client gets, (C,) int64.

        Args:
            left: (C,) int64, how many samples of each class are left; what is drawn is subtracted.
            families: the classes of each coarse class, (C_c,) int64 places in [0, C).
            wanted: samples, at most as many as are left.
            generator: on the CPU.
        """
        counts = torch.zeros_like(left)
        left_coarse = torch.stack([left[family].sum() for family in families])
        q = dirichlet_shares(torch.full((len(families),), self.alpha, dtype=torch.float64), generator)
        # The order in which coarse classes come does not matter to what is drawn within each.
        of_coarse = take_all(left_coarse, q, wanted, generator)
        for family, drawn in zip(families, of_coarse.tolist(), strict=True):
            if drawn:
                q_c = dirichlet_shares(torch.full((len(family),), self.beta, dtype=torch.float64), generator)
                of_family = left[family]
                counts[family] = take_all(of_family, q_c, drawn, generator)
                left[family] = of_family
        return counts


def _families(targets: Tensor, keys: Tensor) -> list[Tensor]:
    """The places of classes, in ascending order of classes, by their key.

    Raises:
        ConfigurationError: if a class has several keys.
    """
    pairs = torch.stack([targets, keys]).unique(dim=1)  # sorted by class
    again = torch.nonzero(pairs[0, 1:] == pairs[0, :-1]).flatten()
    if len(again):
        label, one, other = int(pairs[0, again[0]]), *pairs[1, again[0] : again[0] + 2].tolist()
        raise ConfigurationError(
            f"data.partition is Pachinko, for which keys are coarse classes, but class {label} has samples of the keys {one} "
            f"and {other}; use data with a hierarchy of classes such as CIFAR100, or another partition"
        )
    return [torch.nonzero(pairs[1] == key).flatten() for key in pairs[1].unique()]
