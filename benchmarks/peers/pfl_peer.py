"""Federated averaging by pfl-research: its `FederatedAveraging` on its `SimulatedBackend`, with a PyTorch model.

Updates are weighted by sample counts (`WeightByDatapoints`). pfl evaluates in its first iteration whatever its settings say,
so there is one iteration more, and the clock starts after the first. pfl does not shuffle: a client's batches are cut once and
kept, so that this peer alone is spared a permutation and a gather per client update.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from networks import clients_data, mean_loss, network  # pyrefly: ignore[missing-import]
from pfl.aggregate.simulate import SimulatedBackend  # pyrefly: ignore[missing-import]
from pfl.aggregate.weighting import WeightByDatapoints  # pyrefly: ignore[missing-import]
from pfl.algorithm.base import NNAlgorithmParams  # pyrefly: ignore[missing-import]
from pfl.algorithm.federated_averaging import FederatedAveraging  # pyrefly: ignore[missing-import]
from pfl.callback.base import TrainingProcessCallback  # pyrefly: ignore[missing-import]
from pfl.data.federated_dataset import FederatedDataset  # pyrefly: ignore[missing-import]
from pfl.data.pytorch import PyTorchTensorDataset  # pyrefly: ignore[missing-import]
from pfl.data.sampling import get_user_sampler  # pyrefly: ignore[missing-import]
from pfl.hyperparam.base import NNTrainHyperParams  # pyrefly: ignore[missing-import]
from pfl.metrics import Metrics, Weighted  # pyrefly: ignore[missing-import]
from pfl.model.pytorch import PyTorchModel  # pyrefly: ignore[missing-import]
from protocol import Answer, Run, Workload, serve  # pyrefly: ignore[missing-import]
from torch import Tensor, nn


class Network(nn.Module):
    """A network with the two functions that pfl asks of a model."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = network(name)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.train()
        return F.cross_entropy(self.network(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(F.cross_entropy(self.network(inputs), targets, reduction="sum").item(), len(targets))}


class Stopwatch(TrainingProcessCallback):
    """The time of the end of each iteration."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(time.perf_counter())
        return False, Metrics()


def prepare(workload: Workload) -> dict[str, Run]:
    inputs, targets = clients_data(workload["data"])
    users = [PyTorchTensorDataset((x, y), user_id=str(i)) for i, (x, y) in enumerate(zip(inputs, targets, strict=True))]
    iterations = workload["rounds"] + 1
    settings = NNAlgorithmParams(
        central_num_iterations=iterations,
        evaluation_frequency=iterations,
        train_cohort_size=workload["clients_per_round"],
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(
        local_batch_size=workload["batch_size"], local_num_epochs=1, local_learning_rate=workload["learning_rate"]
    )

    def run() -> Answer:
        np.random.seed(0)  # noqa: NPY002  pfl draws from the global generator
        module = Network(workload["model"])
        model = PyTorchModel(
            module,
            local_optimizer_create=partial(torch.optim.SGD, momentum=workload["momentum"]),
            central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        )
        dataset = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(range(len(users)))))
        backend = SimulatedBackend(training_data=dataset, val_data=dataset, postprocessors=[WeightByDatapoints()])
        stopwatch = Stopwatch()
        FederatedAveraging().run(settings, backend, model, local, callbacks=[stopwatch], send_metrics_to_platform=False)
        return {"seconds": stopwatch.ends[-1] - stopwatch.ends[0], "loss": mean_loss(module.network, inputs, targets)}

    return {"rounds": run}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(["pfl", "torch"], prepare)
