"""What a round costs between two hosts, a rank on each, beside what the cost model says of the link; `two_hosts.sh` starts it.

Measured are rounds of `Federation` by their phases, the shortest of some. The model's exchange has the link's own rate as
`network`, and the way there and back as `message_seconds`: with gloo a sender hears first that its receiver is ready. What a
round sends beside the exchange (losses, Acc and ASR, whether to stop) is not in the model: it shows in the other phases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist

from benchmarks.common import emit, significant
from benchmarks.cost_model import CPU, LARGE, SMALL, Machine, Training, measured_training, on_group, predict
from fl_lightning.cli import quiet

TCP = Path("/proc/sys/net/ipv4/tcp_congestion_control")

PAYLOAD = 1448 / 1500
"""Of a packet, what TCP carries for its user."""

NO_LIMIT = 1e12
"""For what is not the link's: the model's other terms are not asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounds on two hosts; started on both by benchmarks/two_hosts.sh.")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--meet", required=True, help="tcp://ADDRESS:PORT of rank 0")
    parser.add_argument("--link", required=True, help="a name for it")
    parser.add_argument("--mbit", type=float, help="its rate; without one nothing is predicted")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    on_group(options.rank, 2, options.meet)
    for what in (Training(SMALL, 12, 64, 32, ranks=2), Training(LARGE, 12, 64, 32, ranks=2)):
        L.seed_everything(0, verbose=False)
        seconds = measured_training(what)
        if options.rank:
            continue
        row = {"link": options.link, "sizes": what.sizes, "clients": what.clients, "coordinates": what.round().coordinates}
        row |= {"buckets": what.round().buckets, "tcp": TCP.read_text().strip()}
        row |= {f"{name.replace(' ', '_')}_seconds": significant(value) for name, value in seconds.items()}
        if options.mbit:
            row["predicted_exchange_seconds"] = significant(exchange(what, options.mbit, options.delay_ms))
        emit("two_hosts", row, CPU)
    dist.destroy_process_group()


def exchange(what: Training, mbit: float, delay_ms: float) -> float:
    """The model's, of the link alone."""
    link = Machine(
        flops=NO_LIMIT,
        memory=NO_LIMIT,
        vectors=NO_LIMIT,
        rule=NO_LIMIT,
        step_seconds=0.0,
        client_seconds=0.0,
        round_seconds=0.0,
        evaluation_seconds=0.0,
        column_seconds=0.0,
        network=mbit * 1e6 / 8 * PAYLOAD,
        message_seconds=2 * delay_ms / 1000,
    )
    return predict(what.round(), link)["exchange"]


if __name__ == "__main__":
    main()
