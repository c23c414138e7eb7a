"""A run that is forked from another one is the run from its start, to the bit; with another rule, one that changed it then."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from tiny import fit, tiny_federation
from torch import Tensor

from fl_lightning import BackdoorMetrics, CohortSampler, ConfigurationError, FlipRates, LastCheckpoint, RunRecord
from fl_lightning.aggregators import RLR, Aggregator, CenteredClipping, FedAvg, Invariant
from fl_lightning.attacks import Attack, Neurotoxin, ValueTrigger
from fl_lightning.callbacks.digests import config_sha256
from fl_lightning.checkpoints.forking import fork
from fl_lightning.updates import UpdateShard

T, ROUNDS = 3, 6
EVERY = 2
"""Rounds between evaluations: the prefix ends with one that the run from the start has not."""

LATE = CohortSampler(clients_per_round=7, malicious_fraction=0.3, start_round=T)


def trigger() -> ValueTrigger:
    return ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)


class Counting(Attack):
    """Scales by how many rounds it has attacked, which a checkpoint must know."""

    def __init__(self) -> None:
        self.attacked = 0

    def corrupt(self, shard: UpdateShard, knowledge: Any) -> None:
        self.attacked += 1
        for bucket in shard.buckets:
            bucket[shard.malicious] *= 1.0 + self.attacked

    def state_dict(self) -> dict[str, Any]:
        return {"attacked": self.attacked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.attacked = state["attacked"]


class Changing(Aggregator):
    """FedAvg before round T, another rule from then on; what that remembers is its own."""

    def __init__(self, then: Aggregator) -> None:
        super().__init__()
        self.first, self.then = FedAvg(), then
        self.rule: Aggregator = self.first

    def forward(self, shard: UpdateShard) -> Tensor:
        self.rule = self.first if shard.round_number < T else self.then
        return self.rule(shard)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return self.rule.aggregate_buffers(shard)


class Scarred(Aggregator):
    """A rule that keeps a tensor as modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.rule = FedAvg()

    def forward(self, shard: UpdateShard) -> Tensor:
        self.seen += 1
        return self.rule(shard)


def run(folder: Path, rounds: int = ROUNDS, config: Any = None, ckpt_path: Any = None, devices: int = 1, **kwargs: Any) -> Any:
    """The record of a run, with the record of its flips beside it; a forked one goes on by `ckpt_path="last"`."""
    callbacks = [BackdoorMetrics(), LastCheckpoint(), RunRecord(config or settings()), FlipRates()]
    federation = tiny_federation(**{"cohort": LATE, "attacks": [trigger(), Counting()], **kwargs})
    fit(
        federation, rounds=rounds, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True,
        check_val_every_n_epoch=EVERY, ckpt_path=ckpt_path, devices=devices,
    )  # fmt: skip
    return json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else None


def settings(rule: str = "Invariant") -> dict[str, Any]:
    return {"seed_everything": 0, "model": {"aggregator": rule}, "trainer": {"max_epochs": ROUNDS}}


def about(prefix: dict[str, Any], rule: str | None = None) -> dict[str, Any]:
    return {"id": "x", "round": T, "exact": rule is None, "rule": rule, "config_hash": prefix["config_hash"]}


def forked(prefix: Path, folder: Path, rule: str | None = None, config: Any = None) -> Path:
    """A folder with the first checkpoint of a run, and the flips of the rounds before."""
    folder.mkdir()
    record = json.loads((prefix / "run.json").read_text())
    fork(prefix, folder, config or settings(), about(record, rule))
    (folder / "flip_rates.jsonl").write_bytes((prefix / "flip_rates.jsonl").read_bytes())
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "flip_rates.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for key in ("weights_sha256", "initial_weights_sha256", "acc", "asr", "acc_last10", "rounds", "excluded_updates"):
        assert records[0][key] == records[1][key], key
    checkpoints = [torch.load(folder / "last.ckpt", weights_only=True)["federation"] for folder in (one, other)]
    assert checkpoints[0]["attacks"] == checkpoints[1]["attacks"]


def on_two(killed: str, prefix: str) -> None:
    run(Path(killed), ckpt_path="last", devices=2, aggregator=CenteredClipping(max_norm=0.5))
    run(Path(prefix), T, devices=2, aggregator=CenteredClipping(max_norm=0.5))


@pytest.fixture(scope="module")
def invariant(tmp_path_factory):
    """A run from its start, and the first rounds of it."""
    base = tmp_path_factory.mktemp("invariant")
    run(base / "whole")
    run(base / "prefix", T)
    return base


def test_a_forked_run_is_the_run_from_its_start(invariant, tmp_path):
    folder = forked(invariant / "prefix", tmp_path / "forked")
    record = run(folder, ckpt_path="last")
    assert_same_run(invariant / "whole", folder)
    assert [json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert record["prefix"] == about(json.loads((invariant / "prefix" / "run.json").read_text()))
    assert record["config_hash"] == json.loads((invariant / "whole" / "run.json").read_text())["config_hash"]


def test_the_number_of_ranks_does_not_show(tmp_path):
    """With a rule that remembers: killed after the fork and resumed on two ranks; of a prefix that was trained on two."""

    def alone(folder: Path, rounds: int, **kwargs: Any) -> None:
        run(folder, rounds, aggregator=CenteredClipping(max_norm=0.5), **kwargs)

    alone(tmp_path / "whole", ROUNDS)
    alone(tmp_path / "prefix", T)
    killed = forked(tmp_path / "prefix", tmp_path / "killed")
    alone(killed, T + 1, ckpt_path="last")
    on_ranks(2, on_two, str(killed), str(tmp_path / "of two"))
    assert_same_run(tmp_path / "whole", killed)
    assert list((tmp_path / "of two" / "last.ckpt.shards").rglob("rank-1-of-2.pt"))  # its memory lies beside the checkpoint
    other = forked(tmp_path / "of two", tmp_path / "other")
    alone(other, ROUNDS, ckpt_path="last")
    assert_same_run(tmp_path / "whole", other)


@pytest.mark.parametrize(
    "then",
    [lambda: Invariant(tau=0.2, alpha=0.25), lambda: CenteredClipping(max_norm=0.5), lambda: RLR(threshold=4), Scarred],
    ids=["Invariant", "CenteredClipping", "RLR", "Scarred"],
)
def test_another_rule_begins_at_the_fork_without_a_memory(tmp_path, then):
    run(tmp_path / "whole", aggregator=Changing(then()))
    run(tmp_path / "prefix", T, config=settings("FedAvg"), aggregator=FedAvg(), attacks=[])
    folder = forked(tmp_path / "prefix", tmp_path / "forked", rule="FedAvg")
    record = run(folder, ckpt_path="last", aggregator=then())
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["weights_sha256"] == whole["weights_sha256"]
    assert record["prefix"]["rule"] == "FedAvg"
    assert record["config_hash"] != config_sha256(settings())  # it is no run of Invariant from its start
    rows = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path / "whole", folder)
    ]
    assert rows[0][1:] == rows[1][1:]
    assert rows[1][0].items() < rows[0][0].items()  # the prefix had no attack by which to measure ASR


def test_a_memory_of_the_same_rule_is_kept_and_that_of_another_is_not(tmp_path):
    run(tmp_path / "prefix", T, aggregator=CenteredClipping(max_norm=0.5), attacks=[])
    kept = forked(tmp_path / "prefix", tmp_path / "kept")
    lost = forked(tmp_path / "prefix", tmp_path / "lost", rule="CenteredClipping")
    found = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (tmp_path / "prefix", kept, lost)]
    assert ["sharded_state" in checkpoint for checkpoint in found] == [True, True, False]


def test_the_servers_last_step_goes_with_the_run_that_watches_it(tmp_path):
    neurotoxin = {"attacks": [trigger(), Neurotoxin()]}
    run(tmp_path / "whole", **neurotoxin)
    run(tmp_path / "prefix", T, **neurotoxin)
    watched = run(forked(tmp_path / "prefix", tmp_path / "forked"), ckpt_path="last", **neurotoxin)
    assert watched["weights_sha256"] == json.loads((tmp_path / "whole" / "run.json").read_text())["weights_sha256"]
    without = run(forked(tmp_path / "prefix", tmp_path / "other"), ckpt_path="last", attacks=[trigger()])
    assert without["weights_sha256"] != watched["weights_sha256"]


def test_what_cannot_be_forked_from_is_one_line(invariant, tmp_path):
    record = json.loads((invariant / "prefix" / "run.json").read_text())
    with pytest.raises(ConfigurationError, match=r"there is no last\.ckpt in "):
        fork(tmp_path, tmp_path / "a", settings(), about(record))
    with pytest.raises(ConfigurationError, match=r"last\.ckpt is of round 6, not 3"):
        fork(invariant / "whole", tmp_path / "a", settings(), about(record))
    whole = (invariant / "prefix" / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[:-1])
    with pytest.raises(ConfigurationError, match=r"last\.ckpt cannot be read: it is damaged"):
        fork(tmp_path, tmp_path / "a", settings(), about(record))
    run(tmp_path / "other", T, {**settings(), "seed_everything": 1})
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "other" / "last.ckpt").read_bytes())
    with pytest.raises(ConfigurationError, match=r"last\.ckpt is of another run than the run\.json beside it"):
        fork(tmp_path, tmp_path / "a", settings(), about(record))
    assert not (tmp_path / "a").exists()
