"""Constrain-and-scale: attackers learn their back door near the global model, then scale their updates up.

E. Bagdasaryan, A. Veit, Y. Hua, D. Estrin, V. Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020,
https://arxiv.org/abs/1807.00459, Section 4.3 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Broadcast
from fl_lightning.attacks.model_replacement import ModelReplacement
from fl_lightning.data.outcomes import Outcome
from fl_lightning.errors import ConfigurationError

Distance = Literal["l2", "l2_squared", "cosine", "scaled_cosine"]

SCALED_COSINE = 1000.0
"""Factor of the authors' code."""


class ConstrainAndScale(ModelReplacement):
    """Malicious clients train on alpha * L_class + (1 - alpha) * L_ano, and send g' = gamma * g.

    L_class is the client's own loss on its poisoned data. With w the weights in training and w_G those that the round started
    from, trainable parameters alone, L_ano is

    | distance | L_ano |
    | --- | --- |
    | `l2` | the norm of w - w_G, not squared |
    | `l2_squared` | its square |
    | `cosine` | 1 - cos(w, w_G) |
    | `scaled_cosine` | 1000 (1 - cos(w_G + gamma (w - w_G), w_G)): of the model that is sent |

    Put it after an attack that poisons data. A learning rate of the attackers' own with its decay, and more epochs, are
    `model.attackers_optimizer`, `model.attackers_scheduler` and `model.attackers`; staying within a ball, before scaling, is
    `PGD`.

    Args:
        alpha: weight of the client's own loss, in (0, 1]; 1 is no constraint. The file that comes with the authors' code has 1.
        distance: L_ano, see above.
        gamma: the factor, more than 0; 1 / (f a_i) where left out, see `ModelReplacement`. 1 does not scale.
        buffers: whether updates of buffers (BatchNorm's running statistics) are scaled too, as in the authors' code.
        stop_loss: attackers end their round after a pass over their data whose mean L_class is at most this; 0 for never.

    Differs from the paper: the stop looks at the loss of the attackers' own mixed data, where the authors look at that of the
    back door alone, and at accuracy, on test data; the authors divide the learning rate by 50 to 5000 where the model has the
    back door already, which they too know from test data.

    Example:
        >>> module = nn.Linear(2, 1, bias=False)
        >>> _ = module.weight.data.copy_(torch.tensor([[1.5, 1.0]]))
        >>> sent = Broadcast(weights=torch.tensor([1.0, 2.0]))
        >>> own = (0.0 * module.weight).sum()  # a loss of 0
        >>> round(ConstrainAndScale(alpha=0.5).loss(module, None, own, sent).item(), 4)  # half the root of 1.25
        0.559
    """

    outcomes = (Outcome,)

    def __init__(
        self,
        *,
        alpha: float = 0.7,
        distance: Distance = "l2",
        gamma: float | None = None,
        buffers: bool = True,
        stop_loss: float = 0.0,
    ) -> None:
        super().__init__(gamma=gamma, buffers=buffers)
        if not 0 < alpha <= 1:
            raise ConfigurationError(f"ConstrainAndScale.alpha must be more than 0 and at most 1, got {alpha}")
        if distance not in get_args(Distance):
            raise ConfigurationError(
                f"ConstrainAndScale.distance must be one of {', '.join(get_args(Distance))}, got {distance!r}"
            )
        if distance == "scaled_cosine" and gamma is None:
            raise ConfigurationError(
                "ConstrainAndScale.distance scaled_cosine is that of the scaled model, so that gamma must be given; clients do "
                "not know the others' sample counts as they train"
            )
        if not 0 <= stop_loss < math.inf:
            raise ConfigurationError(f"ConstrainAndScale.stop_loss must be 0 (never) or more, and finite, got {stop_loss}")
        self.alpha = alpha
        self.distance = distance
        self.stop_loss = stop_loss

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        return self.alpha * loss + (1 - self.alpha) * self.anomaly(module, broadcast.weights)

    def anomaly(self, module: nn.Module, center: Tensor) -> Tensor:
        """L_ano, () with gradients, of a module's trainable parameters against w_G ((d,), in their order)."""
        weights = torch.cat([parameter.flatten() for parameter in module.parameters() if parameter.requires_grad])
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(weights, center, dim=0)
        if self.distance == "scaled_cosine":
            assert self.gamma is not None
            scaled = center + self.gamma * (weights - center)
            return SCALED_COSINE * (1 - F.cosine_similarity(scaled, center, dim=0))
        away = weights - center
        return away.square().sum() if self.distance == "l2_squared" else torch.linalg.vector_norm(away)

    def finished(self, module: nn.Module, logs: Mapping[str, float]) -> bool:
        return self.stop_loss > 0 and logs["loss"] <= self.stop_loss
