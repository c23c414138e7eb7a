"""Every configuration of a task of sequences: two rounds on made files of the real format, with the same bits on two ranks."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from ranks import on_ranks
from texts_on_disk import write_reddit, write_shakespeare

from fl_lightning.cli import main

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for kind in ("shakespeare", "reddit") for path in (ROOT / kind).glob("*.yaml"))

LESS: dict[str, dict[str, Any]] = {
    "CharLSTM": {"hidden": 8},
    "WordLSTM": {"num_words": 42, "dimension": 8, "hidden": 8},
    "NextWord": {"path": "reddit", "num_words": 40, "max_words": 10, "eval_batch_size": 7},
    "Shakespeare": {"path": "shakespeare", "eval_batch_size": 7},
}


def smaller(node: Any) -> Any:
    if isinstance(node, list):
        return [smaller(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: smaller(part) for key, part in node.items()}
    return (
        node | {"init_args": node.get("init_args", {}) | LESS[node["class_path"]]} if node.get("class_path") in LESS else node
    )


def run_all(place: str, world: int) -> None:
    os.chdir(place)
    for config in CONFIGS:
        folder = f"{config.parent.name}/{config.stem}"
        main(
            [
                *("fit", "--config", f"{folder}.yaml", "--trainer.default_root_dir", f"{folder}{world}"),
                *("--trainer.devices", str(world), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
                *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.logger", "false"),
                *("--model.cohort.clients_per_round", "5", "--model.cohort.malicious_fraction", ".4"),
                "--trainer.callbacks={class_path: AccuracyByGroup, init_args: {clients: true}}",
            ]
        )


def test_two_rounds_end_with_the_same_bits_on_one_rank_and_two(tmp_path):
    write_reddit(tmp_path / "reddit")
    write_shakespeare(tmp_path / "shakespeare")
    for config in CONFIGS:
        settings = smaller(yaml.safe_load(config.read_text()))
        (tmp_path / config.parent.name / config.name).write_text(yaml.safe_dump(settings))
    for world in (1, 2):
        on_ranks(world, run_all, str(tmp_path), world)
    for config in CONFIGS:
        one, two = (tmp_path / config.parent.name / f"{config.stem}{world}" for world in (1, 2))
        alone, shared = (json.loads((folder / "run.json").read_text()) for folder in (one, two))
        for key in ("weights_sha256", "acc", "asr", "acc_by_class", "acc_by_client", "config_hash"):
            assert alone[key] == shared[key], (config, key)
        assert (alone["world_size"], shared["world_size"]) == (1, 2)
        assert alone["initial_weights_sha256"] != alone["weights_sha256"]
        assert alone["excluded_updates"] == alone["refused_rounds"] == 0
        assert len(alone["acc_by_client"]) == 12
        assert 0 <= alone["asr"] <= 1
        assert set(alone.get("metrics", {})) == ({"perplexity"} if config.parent.name == "reddit" else set())
        for name in ("metrics.jsonl", "accuracy_by_group.jsonl"):
            assert (one / name).read_text() == (two / name).read_text()
