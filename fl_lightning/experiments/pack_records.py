"""What stands in a pack's entries, key by key: a digest says that nothing was changed since, not that a run wrote it.

Keys that are not named here are carried along, whatever they hold, as are values of a run's own configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_lightning.callbacks.detections import DETECTION_FILE
from fl_lightning.callbacks.lifespan import SPANS

SHOWN_LETTERS = 60
"""Of a value in a message."""


@dataclass(frozen=True)
class Form:
    """What a value must be.

    Attributes:
        words: the same, for messages.
        fits: whether a value is that, its parts aside.
        keys: form by key, of a mapping; a key may be missing unless it is among `needed`.
        each: of every entry of a list, or of every value of a mapping that `keys` does not name.
        needed: keys that must be there.
    """

    words: str
    fits: Callable[[Any], bool]
    keys: Mapping[str, Form] | None = None
    each: Form | None = None
    needed: tuple[str, ...] = ()


def is_whole(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


TEXT = Form("a text", lambda value: isinstance(value, str))
TRUTH = Form("true or false", lambda value: isinstance(value, bool))
WHOLE = Form("a whole number", is_whole)
NUMBER = Form("a number", is_number)


def mapping(keys: Mapping[str, Form] | None = None, each: Form | None = None, needed: tuple[str, ...] = ()) -> Form:
    return Form("a mapping", lambda value: isinstance(value, dict), keys, each, needed)


def listed(each: Form) -> Form:
    return Form("a list", lambda value: isinstance(value, list), each=each)


def or_null(form: Form) -> Form:
    return Form(f"{form.words} or null", lambda value: value is None or form.fits(value), form.keys, form.each, form.needed)


SPAN = or_null(mapping({"least": or_null(NUMBER), "most": or_null(NUMBER)}, needed=("least", "most")))

RETAINED = or_null(mapping(each=mapping({"share": or_null(NUMBER)}, needed=("share",))))

LIFESPAN = mapping(
    {"state": TEXT, "asr_end": or_null(NUMBER), "mean": or_null(NUMBER), "retention": RETAINED, **dict.fromkeys(SPANS, SPAN)},
    needed=("state", "asr_end", "mean", "retention", *SPANS),
)

EVALUATION = mapping({"round": WHOLE}, each=or_null(NUMBER), needed=("round",))

RECORD = mapping(
    {
        **dict.fromkeys(("state", "reason", "executor"), or_null(TEXT)),
        **dict.fromkeys(("config_hash", "weights_sha256", "initial_weights_sha256"), or_null(TEXT)),
        "finished": TRUTH,
        **dict.fromkeys(("acc", "asr", "acc_last10", "asr_last10", "client_updates_per_second"), or_null(NUMBER)),
        **dict.fromkeys(("evaluated_round", "seed", "rounds", "excluded_updates", "refused_rounds"), or_null(WHOLE)),
        "world_size": WHOLE,
        "peak_memory_bytes": or_null(NUMBER),
        **dict.fromkeys(("acc_last10_rounds", "asr_last10_rounds"), or_null(listed(WHOLE))),
        "seconds": mapping(each=or_null(NUMBER)),
        "hardware": mapping(),
        "versions": mapping(),
        "config": mapping({"trainer": mapping({"max_epochs": or_null(WHOLE)}), "model": mapping()}),
        **dict.fromkeys(("start_from", "prefix"), or_null(mapping())),
        "lifespan": or_null(LIFESPAN),
        "detection": or_null(mapping(each=or_null(NUMBER))),
        "history": listed(EVALUATION),
    },
)

LINES = mapping(
    {
        "metrics.jsonl": listed(EVALUATION),
        DETECTION_FILE: listed(mapping({"round": WHOLE}, each=or_null(NUMBER), needed=("round",))),
    }
)

LABELS = mapping(each=TEXT)

INDEX = mapping(
    {
        "name": TEXT,
        "title": TEXT,
        "given": listed(TEXT),
        "seeds": listed(WHOLE),
        **dict.fromkeys(("center", "baseline", "attack_free"), LABELS),
        "worst_case": or_null(
            mapping(
                {
                    **dict.fromkeys(("rule", "attack"), TEXT),
                    "choose_on": listed(WHOLE),
                    "settings": mapping(each=listed(TEXT)),
                    "max_loss": NUMBER,
                },
                needed=("rule", "attack", "choose_on"),
            )
        ),
        "cells": listed(mapping({"labels": LABELS, "paper": mapping(each=NUMBER), "runs": mapping(each=TEXT)})),
        "prefixes": listed(mapping({"id": TEXT, "seed": WHOLE, "shared": WHOLE, "rule": or_null(TEXT)}, needed=("id",))),
    }
)

FORMS = {"index": INDEX, "record": RECORD, "lines": LINES}


def wrong_in(entry: Mapping[str, Any]) -> str:
    """What is wrong with an entry, key and value; empty where nothing is.

    >>> wrong_in({"record": {"acc": "high"}})
    "record.acc must be a number or null, got 'high'"
    """
    return next(filter(None, (wrong(entry[name], form, name) for name, form in FORMS.items() if name in entry)), "")


def wrong(value: Any, form: Form, place: str) -> str:
    """What is wrong with a value, or with the first of its parts that is not right; empty where nothing is."""
    if not form.fits(value):
        return f"{place} must be {form.words}, got {value!r:.{SHOWN_LETTERS}}"
    if isinstance(value, list) and form.each is not None:
        return next(filter(None, (wrong(part, form.each, f"{place}[{i}]") for i, part in enumerate(value))), "")
    if not isinstance(value, dict):
        return ""
    missing = next((key for key in form.needed if key not in value), None)
    if missing is not None:
        return f"{place} has no {missing}"
    forms = ((key, part, (form.keys or {}).get(key, form.each)) for key, part in value.items())
    return next(filter(None, (wrong(part, of, f"{place}.{key}") for key, part, of in forms if of is not None)), "")
