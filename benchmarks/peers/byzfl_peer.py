"""ByzFL: its aggregators on NumPy and on torch input, and federated averaging by its `Client` and `Server`.

A round is the FedAvg branch of ByzFL's own training loop, with the classes that it offers for it: the clients drawn take the
server's weights, `compute_model_update` does a number of local steps (8 of 64 from 500 shuffled samples are one epoch), and
`update_model_with_weights` averages. Differs from the other peers: ByzFL's average is unweighted, which is the same where
clients are of equal size, and a client's optimizer keeps its momentum from round to round. Kinder than ByzFL's own loop: the
new weights are sent to the next cohort only, not to all clients.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from networks import clients_data, mean_loss, network  # pyrefly: ignore[missing-import]
from protocol import Answer, Run, Workload, serve, timed_rule  # pyrefly: ignore[missing-import]
from torch.utils.data import DataLoader, TensorDataset


def import_byzfl() -> Any:
    """The package, with a stand-in for torchvision, which it imports for data sets that are not used here.

    So its environment can have the torch that the others have, whether or not there is a torchvision built for it.
    """
    sys.modules["torchvision"] = MagicMock()
    import byzfl  # pyrefly: ignore[missing-import]
    import byzfl.fed_framework.models  # pyrefly: ignore[missing-import]

    return byzfl


def prepare_rules(workload: Workload) -> dict[str, Run]:
    byzfl = import_byzfl()
    arrays = np.load(workload["data"])
    tensors = torch.from_numpy(arrays)
    malicious, trimmed = workload["malicious"], workload["trimmed"]
    rules = {
        "trimmed mean": byzfl.TrMean(f=trimmed),
        "median": byzfl.Median(),
        "Krum": byzfl.Krum(f=malicious),
        "Multi-Krum": byzfl.MultiKrum(f=malicious),
        "geometric median": byzfl.GeometricMedian(nu=workload["smoothing"], T=workload["iterations"]),
    }
    wanted = {name: rule for name, rule in rules.items() if name in workload["rules"]}
    runs = {f"{name}, torch": timed_rule(lambda rule=rule: rule(tensors)) for name, rule in wanted.items()}
    return runs | {f"{name}, numpy": timed_rule(lambda rule=rule: rule(arrays)) for name, rule in wanted.items()}


def prepare_rounds(workload: Workload) -> dict[str, Run]:
    byzfl = import_byzfl()
    inputs, targets = clients_data(workload["data"])
    # ByzFL looks models up by name in this module, and takes no others.
    byzfl.fed_framework.models.benchmark_network = lambda: network(workload["model"])
    loaders = [
        DataLoader(TensorDataset(x, y), batch_size=workload["batch_size"], shuffle=True)
        for x, y in zip(inputs, targets, strict=True)
    ]
    common = {
        "model_name": "benchmark_network",
        "device": "cpu",
        "optimizer_name": "SGD",
        "learning_rate": workload["learning_rate"],
        "weight_decay": 0.0,
        "milestones": [],
        "learning_rate_decay": 1.0,
    }
    of_client = {
        "optimizer_params": {"momentum": workload["momentum"]},
        "loss_name": "CrossEntropyLoss",
        "LabelFlipping": False,
        "nb_labels": int(targets.max()) + 1,
        "momentum": 0.0,
        "store_per_client_metrics": False,
    }
    of_server = {"test_loader": loaders[0], "aggregator_info": {"name": "Average", "parameters": {}}, "pre_agg_list": []}

    def run() -> Answer:
        server = byzfl.Server(common | of_server)
        clients = [byzfl.Client(common | of_client | {"training_dataloader": loader}) for loader in loaders]
        draws = np.random.default_rng(0)
        began = time.perf_counter()
        for _ in range(workload["rounds"]):
            weights = []
            for i in draws.choice(len(clients), workload["clients_per_round"], replace=False):
                clients[i].set_model_state(server.get_dict_parameters())
                clients[i].compute_model_update(len(loaders[i]))
                weights.append(clients[i].get_flat_parameters())
            server.update_model_with_weights(weights)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "loss": mean_loss(server.model, inputs, targets)}

    return {"rounds": run}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(["byzfl", "torch"], lambda workload: {"rules": prepare_rules, "rounds": prepare_rounds}[workload["kind"]](workload))
