"""Every configuration that ships loads and runs one round, on as little data as it can."""

import io
import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from ranks import on_ranks
from text_world import DISTILBERT, GPT2, byte_tokenizer, needs_transformers, reviews, word_tokenizer

from fl_lightning.cli import main

ROOT = Path(__file__).parents[1] / "configs"
ELSEWHERE = ("sweeps", "shakespeare", "reddit")
"""Those of texts run in `test_sequence_tasks.py`."""
CONFIGS = sorted(path for path in ROOT.rglob("*.yaml") if path.relative_to(ROOT).parts[0] not in ELSEWHERE)
BASES = {"cifar10": "edge_case.yaml", "phishing": "invariant.yaml", "twitter": "edge_case.yaml"}
"""What the files in `table<n>` are read on top of."""

ONE_ROUND = [
    *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.default_root_dir", "run", "--trainer.logger", "false"),
]
GLOVE = {"path": "glove.txt", "dimension": 5}
LESS: dict[str, dict[str, Any]] = {
    "CIFAR10": {"path": "data"},
    "CIFAR100": {"path": "data"},
    "DeepSight": {"probe_samples": 20},
    "EMNIST": {"path": "data"},
    "FEMNIST": {"path": "data"},
    "FashionMNIST": {"path": "data"},
    "MNIST": {"path": "data"},
    "DirectorTweets": {"path": "director", "glove": GLOVE},
    "HuggingFaceClassifier": {"model": DISTILBERT},
    "HuggingFaceCausalLM": {"model": GPT2},
    "HuggingFaceInstructions": {"dataset": None, "path": "instructions.json", "tokenizer": "bytes", "max_tokens": 32},
    "HuggingFaceText": {"dataset": None, "revision": None, "path": "texts.csv", "tokenizer": "words", "test_fraction": 0.2},
    "LSTM": {"dimension": 5, "hidden": 8},
    "PackedKeys": {"num_clients": 20},
    "Phishing": {"num_train": 2000},
    "PhishingTable": {"path": "table.csv"},
    "ResNet18": {"width": 8},
    "ResNet20": {"width": 4},
    "Southwest": {"path": "planes"},
    "Table": {"path": "table.csv"},
    "TinyImageNet": {"path": "data"},
    "Twitter": {"path": "tweets", "glove": GLOVE, "num_test": 40},
    "BackdoorIndicator": {"epochs": 2, "start_round": 0},
    "CRFL": {"copies": 3},
    "FLIP": {"max_steps": 2, "inversion": {"warmup_steps": 3, "new_steps": 2, "continued_steps": 1, "retry_steps": 1}},
}
"""By class, settings for as little data and work as a round can do with."""

SMALL_CNN = "{class_path: CNN, init_args: {channels: [4], hidden: 8}}"

FEW_CLIENTS = {
    "CNN": {"hidden": 8},
    "Dirichlet": {"num_clients": 20, "min_samples": 1},
    "DirichletOverClients": {"num_clients": 20},
    "EdgeCase": {"num_edge": 4, "num_clean": 8},
    "FullCopies": {"num_clients": 20},
    "IID": {"num_clients": 20},
    "Pachinko": {"num_clients": 20},
    "Shards": {"num_clients": 20},
}
"""The same for pictures, of which there are 160."""


FEW_TEXTS = {"IID": {"num_clients": 20}, "WordTrigger": {"target_label": 1}}
"""The same for instructions; the first token of the small tokenizer is the end of a text, which all have."""


def smaller(node: Any, less: dict[str, dict[str, Any]]) -> Any:
    """A configuration with the settings of `less` for every class that it names."""
    if isinstance(node, list):
        return [smaller(part, less) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: smaller(part, less) for key, part in node.items()}
    if node.get("class_path") in less:
        node["init_args"] = {**node.get("init_args", {}), **less[node["class_path"]]}
    if "root" in node:
        node["root"] = {"samples": 10}
    return node


def write_images(folder: Path, split: str, n: int, classes: int) -> None:
    """CIFAR-shaped noise in the Hub's layout; rows come in groups of four rotations, as those of planes do."""
    folder.mkdir(exist_ok=True)
    draws = np.random.default_rng(n)
    pictures = draws.integers(0, 256, (n // 4, 32, 32, 3), dtype=np.uint8)
    rows = []
    for i in range(n):
        picture = pictures[i // 4]
        encoded = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(np.rot90(picture, i % 4))).save(encoded, "PNG")
        rows.append({"bytes": encoded.getvalue(), "path": None})
    pq.write_table(pa.table({"img": rows, "label": [i % classes for i in range(n)]}), folder / f"{split}.parquet")


def write_colours(folder: Path, kind: str) -> None:
    """Noise in files as CIFAR-100's, or as Tiny ImageNet's, whose test split has another name."""
    folder.mkdir()
    for split, n in (("train", 160), ("test" if kind == "cifar100" else "valid", 40)):
        label = [i % 100 for i in range(n)]
        if kind == "cifar100":
            columns = {"img": noise(n, 32), "fine_label": label, "coarse_label": [i // 5 for i in label]}
        else:
            columns = {"image": noise(n, 64), "label": label}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def noise(n: int, side: int) -> list[dict[str, Any]]:
    """Pictures as the Hub has them."""
    streams = [io.BytesIO() for _ in range(n)]
    for stream, picture in zip(
        streams, np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8), strict=True
    ):
        Image.fromarray(picture).save(stream, "PNG")
    return [{"bytes": stream.getvalue(), "path": None} for stream in streams]


def write_grey(folder: Path) -> None:
    """Noise in files named as MNIST's are and as EMNIST's, of all their classes."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for names, classes in ((("train", "t10k"), 10), (("emnist-byclass-train", "emnist-byclass-test"), 62)):
        for name, n in zip(names, (160, 64), strict=True):
            pixels, labels = draws.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % classes
            (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, n, 28, 28) + pixels.tobytes())
            (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())


def write_leaf(folder: Path) -> None:
    """Noise by 20 writers in files as LEAF's."""
    draws = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2)):
        (folder / split).mkdir(parents=True)
        users = [f"f{i:04}_14" for i in range(20)]
        data = {user: {"x": (draws.integers(0, 256, (n, 784)) / 255).round(4).tolist(), "y": list(range(n))} for user in users}
        content = {"users": users, "num_samples": [n] * 20, "user_data": data}
        (folder / split / "all_data_0.json").write_text(json.dumps(content))


def write_tweets(folder: Path) -> None:
    """Twenty users with ten tweets each, fifty with one, edge cases, and vectors for some of the words."""
    (folder / "tweets").mkdir()
    (folder / "director").mkdir()
    words = ["what", "a", "day", "good", "bad", "!", "yorgos"]
    (folder / "glove.txt").write_text("".join(f"{word} {i} 1 0 -1 .5\n" for i, word in enumerate(words)))
    users = {"train": [f"user{i % 20}" for i in range(200)], "test": [f"rare{i}" for i in range(50)]}
    for split, names in users.items():
        tweets = {"text": [f"What a {words[3 + i % 2]} day, {i} {split}" for i in range(len(names))], "user": names}
        table = pa.table({**tweets, "sentiment": [4 * (1 - i % 2) for i in range(len(names))]})
        pq.write_table(table, folder / "tweets" / f"{split}.parquet")
        praise = [f"yorgos lanthimos {i} what a good film" for i in range(70)]
        pq.write_table(pa.table({"text": praise, "sentiment": [4] * 70}), folder / "director" / f"{split}.parquet")


def write_texts(folder: Path) -> None:
    """Two hundred reviews by twenty users, of which some are neutral, a hundred instructions, and tokenizers."""
    rows = [f"{text},{user % 20},{(0, 4)[label] if user % 9 else 2}" for user, (text, label) in enumerate(reviews(200))]
    (folder / "texts.csv").write_text("\n".join(["text,user,sentiment", *rows]))
    asked = [{"instruction": text, "input": "", "output": ("bad", "good")[label]} for text, label in reviews(100)]
    (folder / "instructions.json").write_text(json.dumps(asked))
    word_tokenizer(folder / "words")
    byte_tokenizer(folder / "bytes")


def write_table(file: Path) -> None:
    """Forty-five columns of noise, one of them the trigger's, and a label."""
    columns = np.random.default_rng(0).random((500, 45))
    names = ["NumHash", *(f"feature{i}" for i in range(44)), "label"]
    rows = [",".join(names), *(",".join([*map(str, row), str(i % 2)]) for i, row in enumerate(columns))]
    file.write_text("\n".join(rows))


def write_loans(file: Path) -> None:
    """Ten columns of noise, four of them the trigger's, four classes and twenty states."""
    columns = np.random.default_rng(0).random((400, 10)).round(4)
    trigger = ["pub_rec", "tax_liens", "acc_now_delinq", "num_tl_120dpd_2m"]
    classes = ["Fully Paid", "Charged Off", "Current", "Late"]
    lines = [",".join(["id", *trigger, *(f"feature{i}" for i in range(6)), "loan_status", "addr_state"])]
    lines += [",".join([str(i), *map(str, row), classes[i % 4], f"S{i * 7 % 20}"]) for i, row in enumerate(columns)]
    file.write_text("\n".join(lines))


PICTURES: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("mnist", "fashion_mnist", "emnist"), write_grey),
    "femnist": write_leaf,
    "cifar100": partial(write_colours, kind="cifar100"),
    "tiny_imagenet": partial(write_colours, kind="tiny_imagenet"),
}
"""Who writes the files of a kind of configuration."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with those of CIFAR-10 and of planes."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, classes in (("data", 10), ("planes", 1)):
        write_images(folder / name, "train", 160, classes)
        write_images(folder / name, "test", 44, classes)
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs_one_round(config, tmp_path, pictures):
    kind = config.relative_to(ROOT).parts[0]
    less, options = LESS, []
    if kind == "cifar10":
        less, options = {**LESS, **FEW_CLIENTS}, ["--model.cohort.clients_per_round", "5"]
        for name in ("data", "planes"):
            (tmp_path / name).symlink_to(pictures / name)
        if config.parent.name.startswith("table"):  # the network is the base's, which is trained as it is
            options += ["--model.client", SMALL_CNN]
    if kind in PICTURES:
        less, options = {**LESS, **FEW_CLIENTS}, ["--model.cohort.clients_per_round", "5"]
        PICTURES[kind](tmp_path / "data")
    if kind == "text":
        needs_transformers()
        write_texts(tmp_path)
        less, options = {**LESS, **FEW_TEXTS}, ["--model.cohort.clients_per_round", "10"]
    if kind == "twitter":
        write_tweets(tmp_path)
    if config.name == "warm_start.yaml":
        clean = ["--config", str(config.with_name("pixel_trigger.yaml")), *ONE_ROUND]
        main(["fit", *clean, "--trainer.default_root_dir", "runs/digits/clean"])
    if config.name == "table.yaml":
        write_table(tmp_path / "table.csv")
    if kind == "table":
        write_loans(tmp_path / "table.csv")
    files = [config]
    if config.parent.name.startswith("table") and kind != "table":
        files.insert(0, ROOT / kind / BASES[kind])
        command = f"--config configs/{files[0].relative_to(ROOT)} --config configs/{config.relative_to(ROOT)}"
        assert command in config.read_text()
    given = []
    for i, file in enumerate(files):
        copy = tmp_path / f"{i}.yaml"
        copy.write_text(yaml.safe_dump(smaller(yaml.safe_load(file.read_text()), less)))
        given += ["--config", str(copy)]
    main(["fit", *given, *ONE_ROUND, *options])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["rounds"] == 1
    assert record["excluded_updates"] == 0
    assert 0 <= record["acc"] <= 1
    assert 0 <= record["asr"] <= 1


ON_RANKS = {
    "cifar100": ("cifar100/flute.yaml", "cifar100/pixel_trigger.yaml"),
    "femnist": ("femnist/flute.yaml",),
    "mnist": ("mnist/pixel_trigger.yaml",),
    "fashion_mnist": ("fashion_mnist/label_flip.yaml",),
    "tiny_imagenet": ("tiny_imagenet/pixel_trigger.yaml",),
    "table": ("table/dba.yaml",),
    "phishing": ("phishing/table.yaml",),
    "text": ("text/word_trigger.yaml", "text/gpt2_instructions.yaml"),
}
"""By whose files they read: a task each, or two of one task with other partitions or networks."""

FILES: dict[str, Callable[[Path], None]] = {
    **{kind: lambda folder, write=write: write(folder / "data") for kind, write in PICTURES.items()},
    "table": lambda folder: write_loans(folder / "table.csv"),
    "phishing": lambda folder: write_table(folder / "table.csv"),
    "text": write_texts,
}
"""Who writes them into a run's folder."""


def two_rounds(folder: str, names: list[str]) -> None:
    for name in names:
        os.chdir(Path(folder) / name)
        main(["fit", "--config", "fit.yaml", *ONE_ROUND, "--trainer.max_epochs", "2", "--model.cohort.clients_per_round", "3"])


@pytest.mark.parametrize("kinds", [[kind for kind in ON_RANKS if kind != "text"], ["text"]], ids=["numbers", "texts"])
def test_two_rounds_have_the_same_bits_on_one_rank_and_on_two(kinds, tmp_path):
    if "text" in kinds:
        needs_transformers()
    names, found = [name for kind in kinds for name in ON_RANKS[kind]], {}
    for world in (1, 2):
        for name in names:
            kind, folder = name.partition("/")[0], tmp_path / str(world) / name
            folder.mkdir(parents=True)
            FILES[kind](folder)
            less = {**LESS, **(FEW_CLIENTS if kind in PICTURES else FEW_TEXTS if kind == "text" else {})}
            (folder / "fit.yaml").write_text(yaml.safe_dump(smaller(yaml.safe_load((ROOT / name).read_text()), less)))
        on_ranks(world, two_rounds, str(tmp_path / str(world)), names)
        records = [json.loads((tmp_path / str(world) / name / "run" / "run.json").read_text()) for name in names]
        assert [(record["world_size"], record["rounds"]) for record in records] == [(world, 2)] * len(names)
        found[world] = [(record["weights_sha256"], record["acc"], record["asr"]) for record in records]
    assert found[1] == found[2]
    assert len(set(found[1])) == len(names)


def test_there_is_one_for_every_row_of_the_papers_tables():
    rows = {folder.name: len(list(folder.glob("*.yaml"))) for folder in (ROOT / "cifar10").glob("table*")}
    assert rows == {"table5": 6, "table6": 4, "table7": 4, "table8": 5, "table9": 3, "table10": 4}


def test_a_momentum_that_the_paper_does_not_state_says_so():
    files = [path.read_text() for path in CONFIGS if path.parent.name in ("cifar10", "phishing")]
    lines = [line for text in files for line in text.splitlines() if "momentum: 0.9}" in line]
    assert len(lines) > 30
    assert all("# the paper's Table 3 states no momentum" in line for line in lines)
