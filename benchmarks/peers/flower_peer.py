"""Flower: its aggregation functions, and federated averaging by its simulation engine.

A run is one `run_simulation` of a `ServerApp` with the `FedAvg` strategy and a `ClientApp`, on the Ray backend with one core
and so one worker process. A client reads its own part of the data, kept by the worker, makes a model, loads the server's
weights, trains and sends its own, as in Flower's PyTorch quickstart. Ray takes seconds to start, which is not counted: there is
one round more, and the clock starts after the first. What each message costs is counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import (  # pyrefly: ignore[missing-import]
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # pyrefly: ignore[missing-import]
from flwr.server.strategy import aggregate as rules  # pyrefly: ignore[missing-import]
from flwr.serverapp import Grid, ServerApp  # pyrefly: ignore[missing-import]
from flwr.serverapp.strategy import FedAvg  # pyrefly: ignore[missing-import]
from flwr.simulation import run_simulation  # pyrefly: ignore[missing-import]
from networks import clients_data, mean_loss, network  # pyrefly: ignore[missing-import]
from protocol import Answer, Run, Workload, serve, timed_rule  # pyrefly: ignore[missing-import]


def prepare_rules(workload: Workload) -> dict[str, Run]:
    updates = np.load(workload["data"])
    # What a strategy hands over: per client, a list of arrays (here of one) and the number of its samples.
    results = [([update], 1) for update in updates]
    n, malicious = len(results), workload["malicious"]
    share = workload["trimmed"] / n
    functions = {
        "trimmed mean": lambda: rules.aggregate_trimmed_avg(results, share)[0],
        "median": lambda: rules.aggregate_median(results)[0],
        "Krum": lambda: rules.aggregate_krum(results, malicious, 0)[0],
        "Multi-Krum": lambda: rules.aggregate_krum(results, malicious, n - malicious)[0],
    }
    return {name: timed_rule(function) for name, function in functions.items() if name in workload["rules"]}


def make_client_app(workload: Workload) -> ClientApp:
    """The app of all clients: one local epoch."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        inputs, targets = (part[context.node_config["partition-id"]] for part in clients_data(workload["data"]))
        model = network(workload["model"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=workload["learning_rate"], momentum=workload["momentum"])
        for batch in torch.randperm(len(targets)).split(workload["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(targets)})
        return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


class TimedFedAvg(FedAvg):
    """`FedAvg` that notes when each round began."""

    def __init__(self, clients_per_round: int, num_clients: int) -> None:
        super().__init__(fraction_train=clients_per_round / num_clients, fraction_evaluate=0.0, min_available_nodes=num_clients)
        self.began: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self.began.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)


def prepare_rounds(workload: Workload) -> dict[str, Run]:
    inputs, targets = clients_data(workload["data"])
    client_app = make_client_app(workload)
    model = network(workload["model"])
    resources = {"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}

    def run() -> Answer:
        strategy = TimedFedAvg(workload["clients_per_round"], len(targets))
        found: Answer = {}
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, _: Context) -> None:
            initial = ArrayRecord(network(workload["model"]).state_dict())
            result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=workload["rounds"] + 1)
            found["seconds"] = time.perf_counter() - strategy.began[1]
            model.load_state_dict(result.arrays.to_torch_state_dict())

        run_simulation(server_app, client_app, num_supernodes=len(targets), backend_config=resources)
        return found | {"loss": mean_loss(model, inputs, targets)}

    return {"rounds": run}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(
        ["flwr", "ray", "torch"],
        lambda workload: {"rules": prepare_rules, "rounds": prepare_rounds}[workload["kind"]](workload),
    )
