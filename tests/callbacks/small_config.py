"""Settings of a run, as small as they can be, and changed in some parts."""

from typing import Any

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"aggregator": {"class_path": "Invariant", "init_args": {"tau": 0.2}}, "attacks": [{"path": "/a"}]},
    "data": {"path": "/here", "num": 1},
    "trainer": {"max_epochs": 4, "devices": 2},
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**CONFIG, **parts}
