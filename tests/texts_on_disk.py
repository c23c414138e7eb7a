"""Small files in the formats that text tasks come in: LEAF's Shakespeare and Reddit, the Hub's Parquet, JSON lines."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SPEECH = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate: [exit}\n"
WORDS = ["pasta", "from", "astoria", "is", "delicious", "and", "so", "the", "bread", "of", "a", "baker", "was", "not"]


def windows(role: int, n: int, start: int = 0) -> tuple[list[str], list[str]]:
    """n windows of 80 characters and what follows each, of one role's text."""
    text = "".join(random.Random(role).sample(SPEECH, len(SPEECH))) * (n // 80 + 3)
    return [text[i : i + 80] for i in range(start, start + n)], [text[i + 80] for i in range(start, start + n)]


def write_leaf(folder: Path, split: str, users: dict[str, dict[str, Any]]) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    content = {"users": list(users), "num_samples": [len(of["y"]) for of in users.values()], "user_data": users}
    (folder / split / "all_data_niid_0_keep_0.json").write_text(json.dumps(content))


def write_shakespeare(folder: Path, roles: int = 12, train: int = 85, test: int = 6) -> Path:
    """LEAF's files: `hierarchies`, which nothing here reads, are left out."""
    for split, n, start in (("train", train, 0), ("test", test, train)):
        users = {f"PLAY_{i}_ROLE": dict(zip(("x", "y"), windows(i, n, start), strict=True)) for i in range(roles)}
        write_leaf(folder, split, users)
    return folder


def shakespeare_table(sizes: dict[str, int]) -> pa.Table:
    """What the Hub has, roles in the order given."""
    rows: dict[str, list[str]] = {"character_id": [], "x": [], "y": []}
    for i, (role, n) in enumerate(sizes.items()):
        x, y = windows(i, n)
        for column, values in zip(rows, ([role] * n, x, y), strict=True):
            rows[column] += values
    return pa.table(rows)


def comment(draws: random.Random, length: int = 10) -> tuple[list[list[str]], dict[str, Any]]:
    """One of LEAF's: sequences of `length` words, the last one padded, and what follows each."""
    words = ["<BOS>", *(draws.choice(WORDS) for _ in range(draws.randint(3, 14))), "<EOS>"]
    inputs, targets = [], []
    for start in range(0, len(words) - 1, length):
        part = words[start : start + length + 1]
        x, y = part[:-1], part[1:]
        inputs.append(x + ["<PAD>"] * (length - len(x)))
        targets.append(y + ["<PAD>"] * (length - len(y)))
    counts = [[int(word != "<PAD>") for word in sequence] for sequence in targets]
    return inputs, {"subreddit": "food", "created_utc": 1512086400, "target_tokens": targets, "count_tokens": counts}


def write_reddit(folder: Path, authors: int = 12) -> Path:
    draws = random.Random(0)
    for split, n in (("train", 6), ("test", 2)):
        users = {}
        for i in range(authors):
            comments = [comment(draws) for _ in range(n)]
            users[f"author{i}"] = {"x": [x for x, _ in comments], "y": [y for _, y in comments]}
        write_leaf(folder, split, users)
    return folder


def texts(authors: int, n: int, seed: int = 0) -> list[dict[str, str]]:
    draws = random.Random(seed)
    return [
        {"author": f"author{i}", "text": " ".join(draws.choice(WORDS) for _ in range(draws.randint(4, 30))) + "."}
        for i in range(authors)
        for _ in range(n)
    ]


def write_lines(file: Path, entries: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_table(file: Path, entries: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(entries), file)
