"""Time of server rules and of rounds of federated averaging, against other packages for federated learning.

    bash benchmarks/peers/environments.sh .peers
    OMP_NUM_THREADS=1 python -m benchmarks.peers --environments .peers

All run on one core with one thread, in turn: whoever waits for its turn reads a line and so takes no time. README.md says how
each peer is used and what is not counted.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from benchmarks.common import alternate, emit, significant, summary, timed
from benchmarks.peers.peer import KINDS, Peer, PeerError, available
from benchmarks.plain_loop import sorted_trimmed_mean
from benchmarks.rounds import SEED, Case
from fl_lightning.aggregators import RFA, Aggregator, Invariant, Krum, Median, MultiKrum, TrimmedMean
from fl_lightning.cli import quiet
from fl_lightning.data import IID, FederatedDataModule, TensorSamples
from fl_lightning.machine.heap import keep_freed_memory
from fl_lightning.models import CNN, MLP, Classifier, DropoutCNN
from fl_lightning.seeding import generator
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.trimming import COMPILED_ROWS

CPU = torch.device("cpu")
OURS = "fl_lightning"
RULES = ("trimmed mean", "median", "Krum", "Multi-Krum", "geometric median", "Invariant")

NETWORKS = ("mlp", "cnn", "dropout_cnn")

COMPILED = ("trimmed mean", "median", "Invariant")

# The geometric median as ByzFL has it by default: as many iterations, as much smoothing, none left out.
ITERATIONS, SMOOTHING = 3, 0.1


@dataclass
class Candidate:
    """Someone's way to do a piece of work: `run` gives its seconds, `result` what the latest run came to, if it is known."""

    run: Callable[[], float]
    versions: Mapping[str, str]
    result: Callable[[], Any] = lambda: None


def rule_candidates(rule: str, shard: UpdateShard, malicious: int, trimmed: int) -> dict[str, Candidate]:
    """Our own rule, and what PyTorch and NumPy have to offer for the same."""
    ours: dict[str, Aggregator] = {
        "trimmed mean": TrimmedMean(alpha=0.25),
        "median": Median(),
        "Krum": Krum(num_malicious=malicious),
        "Multi-Krum": MultiKrum(num_malicious=malicious),
        "geometric median": RFA(max_iterations=ITERATIONS, nu=SMOOTHING, ftol=0.0),
        "Invariant": Invariant(tau=0.2, alpha=0.25),
    }
    values, ones = shard.values, torch.ones(shard.num_coordinates)
    functions: dict[str, Callable[[], Any]] = {OURS: partial(ours[rule], shard)}
    if rule in COMPILED and shard.num_clients <= COMPILED_ROWS:
        compiled = copy.copy(shard)
        compiled.compiled = True
        functions[f"{OURS}, compiled"] = partial(ours[rule], compiled)
    if rule == "trimmed mean":
        arrays = values.numpy()
        functions["torch.sort"] = partial(sorted_trimmed_mean, values, trimmed)
        functions["numpy.sort"] = lambda: np.sort(arrays, axis=0)[trimmed : len(arrays) - trimmed].mean(axis=0)

    def candidate(function: Callable[[], Any]) -> Candidate:
        results: list[Any] = [None]

        def keep() -> None:
            results[0] = function()

        return Candidate(timed(keep, CPU), versions(), lambda: sample(results[0]))

    # As fast as the updates can be read: a product of matrix and vector reads each number once, several rows at a time, and
    # was faster than every other plain read tried (sums, extrema and dot products of torch and NumPy, over all or per column).
    reading = Candidate(timed(lambda: values @ ones, CPU), versions())
    return {who: candidate(function) for who, function in functions.items()} | {"one read": reading}


def sample(aggregate: Any) -> list[float]:
    """About a thousand coordinates, as peers answer them."""
    return [float(value) for value in aggregate[:: len(aggregate) // 1000]]


def measure_rules(options: argparse.Namespace, folder: Path) -> None:
    """Rows for every rule and size."""
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        malicious, trimmed = n // 5, math.ceil(n / 4)
        values = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        data = folder / "updates.npy"
        np.save(data, values.numpy())
        workload = {"kind": "rules", "rules": options.rules, "malicious": malicious, "trimmed": trimmed, "data": str(data)}
        workload |= {"iterations": ITERATIONS, "smoothing": SMOOTHING}
        shard = UpdateShard.from_updates(values)
        with ExitStack() as stack:
            peers = start(stack, options.environments, workload, folder)
            for rule in options.rules:
                candidates = rule_candidates(rule, shard, malicious, trimmed)
                if rule == "Invariant":  # nobody else has it; a trimmed mean is the nearest that peers do
                    trimming = peer_candidates(peers, "trimmed mean", "values")
                    others = {f"{who}, trimmed mean": replace(it, result=lambda: None) for who, it in trimming.items()}
                else:
                    others = peer_candidates(peers, rule, "values")
                candidates |= others
                row = {"work": rule, "clients": n, "coordinates": d}
                report(row, candidates, options.repeats, lambda values, ours: np.allclose(values, ours, rtol=1e-4, atol=1e-5))


def task(num_clients: int, shape: tuple[int, ...], num_classes: int, of_each: int = 500) -> FederatedDataModule:
    """Random samples, so many per client, with classes that a linear teacher tells."""
    draws, n = generator(SEED, "benchmark peers"), of_each * num_clients
    inputs = torch.randn(n, *shape, generator=draws)
    targets = (inputs.flatten(1) @ torch.randn(math.prod(shape), num_classes, generator=draws)).argmax(1)
    samples = TensorSamples(inputs, targets)
    return FederatedDataModule.from_datasets(samples, samples, partition=IID(num_clients=num_clients), num_classes=num_classes)


def measure_rounds(options: argparse.Namespace, folder: Path) -> None:
    """Rows for the networks that were asked for."""
    few = max(1, options.rounds // 5)
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # Rounds before, in which the executor is chosen and prepared: as others compile theirs.
    if "mlp" in options.networks:
        mlp = Case("MLP", "FedAvg", MLP(), task(100, (45,), 2), 0.1, 20, options.rounds, CPU, warm_rounds=40)
        measure_case("mlp", [mlp], options, folder)
    if "cnn" in options.networks:
        cnn = Case("CNN", "FedAvg", CNN(), task(10, (3, 32, 32), 10), 0.01, 4, few, CPU, 1, CNN(channels_last=True))
        measure_case("cnn", [cnn], options, folder)
    if "dropout_cnn" in options.networks:  # the benchmark of pfl-research
        data, model = task(200, (3, 32, 32), 10, of_each=50), DropoutCNN()
        alike = partial(Case, "CNN with dropout, batches of 10", "FedAvg", model, data, 0.1, 50, few, CPU, 1, None)
        cases = [alike(local=local, batch_size=10, momentum=0.0) for local in ({}, {"precision": "bf16"})[: 1 + bf16]]
        measure_case("dropout_cnn", cases, options, folder)


def measure_case(model: str, cases: list[Case], options: argparse.Namespace, folder: Path) -> None:
    """Rows for a network. What is measured of ours, its `LocalTraining` included, is made in `rounds.Case`.

    Args:
        model: its name in `networks.py`.
        cases: with peers, who train as the first says; of others `Federation` alone.
    """
    case = cases[0]
    clients = torch.stack(case.data.clients)
    inputs, targets = case.data.train.batch(clients.flatten())
    inputs, targets = inputs.unflatten(0, clients.shape), targets.view(clients.shape)
    data = folder / "samples.npz"
    np.savez(data, inputs=inputs.numpy(), targets=targets.numpy())
    workload = {"kind": "rounds", "model": model, "data": str(data), "clients_per_round": case.clients_per_round}
    workload |= {"rounds": case.rounds, "batch_size": case.batch_size}
    workload |= {"learning_rate": case.learning_rate, "momentum": case.momentum}

    def candidate(run: Callable[[], float], way: str, of: Case = case) -> Candidate:
        return Candidate(run, versions(), lambda: loss(of.model, of.weights[way], inputs, targets))

    candidates = {OURS: candidate(case.federation, "federation"), "plain loop": candidate(case.plain, "plain")}
    candidates |= {f"{OURS}, {of.local['precision']}": candidate(of.federation, "federation", of) for of in cases[1:]}
    row = {"work": f"rounds, {case.task}", "clients": len(clients), "samples_per_client": clients.shape[1]}
    row |= {"clients_per_round": case.clients_per_round, "rounds": case.rounds}
    tolerance = 0.1 * math.log(int(targets.max()) + 1)  # a tenth of what an untrained network loses
    with ExitStack() as stack:
        candidates |= peer_candidates(start(stack, options.environments, workload, folder), "rounds", "loss")
        report(row, candidates, options.repeats, lambda theirs, ours: abs(theirs - ours) < tolerance)


@torch.no_grad()
def loss(model: Classifier, weights: Tensor, inputs: Tensor, targets: Tensor) -> float:
    """Cross-entropy on the first ten samples of each client, as peers answer it."""
    model = copy.deepcopy(model).eval()
    vector_to_parameters(weights, model.parameters())
    return F.cross_entropy(model(inputs[:, :10].flatten(0, 1)), targets[:, :10].flatten()).item()


def versions() -> dict[str, str]:
    return {OURS: version(OURS), "torch": version("torch"), "numpy": version("numpy")}


def start(stack: ExitStack, environments: Path, workload: dict[str, Any], folder: Path) -> list[Peer]:
    """Start the peers that do such work and have an environment."""
    names = [name for name in available(environments) if workload["kind"] in KINDS[name]]
    return [stack.enter_context(Peer(name, environments, workload, folder / f"{name}.log")) for name in names]


def peer_candidates(peers: list[Peer], work: str, result: str) -> dict[str, Candidate]:
    """All that peers can run of a piece of work: runs of its name, or of its name and a variant's after a comma."""
    candidates = {}
    for peer in peers:
        for run in peer.runs:
            name, _, variant = run.partition(", ")
            if name == work:
                answer = partial(lambda peer, run: peer.answers[run][result], peer, run)
                who = f"{peer.name}, {variant}" if variant else peer.name
                candidates[who] = Candidate(partial(peer.run, run), peer.versions, answer)
    return candidates


def report(row: Mapping[str, Any], candidates: dict[str, Candidate], repeats: int, agree: Callable[[Any, Any], bool]) -> None:
    """Measure the candidates in turn and print a row for each."""
    for who, candidate in list(candidates.items()):
        try:
            candidate.run()  # compiles, fills caches
        except PeerError as error:
            emit("peers", {**row, "who": who, "versions": candidate.versions, "error": str(error)}, CPU)
            del candidates[who]
    seconds = alternate({who: candidate.run for who, candidate in candidates.items()}, repeats=repeats, warm_up=0)
    ours = candidates[OURS].result()
    for who, candidate in candidates.items():
        measured, result = seconds[who], candidate.result()
        of_ours = [theirs / our for theirs, our in zip(measured, seconds[OURS], strict=True)]
        found: dict[str, Any] = {"who": who, "versions": candidate.versions, "seconds": summary(measured)}
        if "rounds" in row:
            updates = row["rounds"] * row["clients_per_round"]
            found |= {"updates_per_second": summary([updates / s for s in measured]), "loss": significant(result)}
        found |= {"of_ours": summary(of_ours), "agrees": None if result is None else bool(agree(result, ours))}
        emit("peers", {**row, **found, "repeats": repeats}, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="fl_lightning against its peers.")
    parser.add_argument("--environments", type=Path, default=Path(".peers"), help="folder that environments.sh has filled")
    parser.add_argument("--work", nargs="+", choices=("rules", "rounds"), default=("rules", "rounds"))
    parser.add_argument("--sizes", nargs="+", default=["20x1000000", "20x11173962"], help="clients x coordinates, of the rules")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="of the rounds")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of one run with the MLP; a fifth of it with a CNN")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()  # as a federation does
    if not available(options.environments):
        parser.error(
            f"--environments: no peer's environment in {options.environments}; make them with "
            f"`bash benchmarks/peers/environments.sh {options.environments}`"
        )
    quiet()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # which the peers inherit
    with tempfile.TemporaryDirectory() as folder:
        for work in options.work:
            {"rules": measure_rules, "rounds": measure_rounds}[work](options, Path(folder))


if __name__ == "__main__":
    main()
