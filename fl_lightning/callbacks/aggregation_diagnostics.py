"""What the rule did to a round's updates."""

import lightning as L
import torch
from torch import Tensor

from fl_lightning.checked import Checked
from fl_lightning.federation import Federation
from fl_lightning.updates.shard import UpdateShard


class AggregationDiagnostics(Checked, L.Callback):
    """Logs, per round and the same on any number of ranks:

    - `diagnostics/kept_fraction`: share of the coordinates that the rule's mask keeps, 1 for rules without a mask.
    - `diagnostics/kept_fraction/<tensor>`: the same within each parameter tensor.
    - `diagnostics/update_norm_benign`, `..._malicious`: mean Euclidean norm of the clients' updates.
    - `diagnostics/norm_before`: norm of the plain mean of the updates; `diagnostics/norm_after`: of the aggregate.
    - `diagnostics/malicious_direction`: share of the kept coordinates in which the aggregate has the sign that most
      malicious clients voted for.

    Costs about as much as the aggregation itself.

    Args:
        per_layer: also log each parameter tensor's kept fraction.
    """

    def __init__(self, *, per_layer: bool = True) -> None:
        self.per_layer = per_layer

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What may be logged in training, by its full names."""
        assert isinstance(federation, Federation)
        figures = ["kept_fraction", "norm_before", "norm_after", "update_norm_benign"]
        figures += ["update_norm_malicious", "malicious_direction"] if federation.cohort.malicious_per_round else []
        figures += [f"kept_fraction/{name}" for name in federation.parameters_layout.names] if self.per_layer else []
        return [f"diagnostics/{name}" for name in figures]

    def on_aggregate(self, federation: Federation, shard: UpdateShard, aggregate: Tensor) -> None:
        if shard.num_clients:
            mask = federation.aggregator.mask(shard) if shard.kept is None else shard.kept
            values = diagnose(shard, aggregate, mask)
            if not self.per_layer:
                values = {name: value for name, value in values.items() if not name.startswith("kept_fraction/")}
            federation.log_dict({f"diagnostics/{name}": value for name, value in values.items()}, batch_size=1)


def diagnose(shard: UpdateShard, aggregate: Tensor, mask: Tensor) -> dict[str, float]:
    """The figures of one round.

    Args:
        shard: (N, S) updates after attacks and exclusions, N >= 1.
        aggregate: (S,) float32, what the rule made of them.
        mask: (S,) bool, the coordinates that the rule keeps.
    """
    n, malicious = shard.num_clients, shard.malicious

    def partial(values: Tensor, aggregate: Tensor, mask: Tensor) -> Tensor:
        """(N + 3,) float64: squares of each update, of their mean and of the aggregate; coordinates with the attackers."""
        votes = values[malicious].sign().sum(0).sign()
        with_attackers = mask & (votes != 0) & (aggregate.sign() == votes)
        squares = [values.square().sum(1), values.mean(0).square().sum()[None], aggregate.double().square().sum()[None]]
        return torch.cat([*squares, with_attackers.sum()[None].double()])

    sums = shard.reduce(partial, aggregate, mask).cpu()  # all in one pass over the updates
    norms, with_attackers = sums[: n + 2].sqrt(), int(sums[n + 2])
    kept = shard.count_by_layer(mask)
    total = max(1, int(kept.sum()))
    figures = {
        "kept_fraction": int(kept.sum()) / shard.num_coordinates,
        "norm_before": float(norms[n]),
        "norm_after": float(norms[n + 1]),
    }
    for layer, count in zip(shard.layers, kept.tolist(), strict=True):
        figures[f"kept_fraction/{layer.name}"] = count / layer.size
    for name, group in (("benign", ~malicious), ("malicious", malicious)):
        if group.any():
            figures[f"update_norm_{name}"] = float(norms[:n][group.cpu()].mean())
    if malicious.any():
        figures["malicious_direction"] = with_attackers / total
    return figures
