"""Texts, and lists of them, that are given in Python to the package's classes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_lightning.aggregators import FLARE, DeepSight
from fl_lightning.attacks import Chameleon, ThreeDFed, WordTrigger
from fl_lightning.data import IID, HuggingFaceInstructions, HuggingFaceText, NextWord, Table, Tokenizer
from fl_lightning.errors import ConfigurationError

P = IID(num_clients=3)
TABLE: dict[str, Any] = {"partition": P, "path": "a.csv", "label_column": "y"}
TEXTS: dict[str, Any] = {"partition": P, "path": "a.csv", "tokenizer": "bert"}


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Chameleon, {"output_layer": 3}, r"Chameleon: output_layer must be a text, got 3 of type int"),
    (DeepSight, {"output_layer": ["net.4"]}, r"DeepSight: output_layer must be a text, got \['net\.4'\] of type list"),
    (FLARE, {"output_layer": True}, r"FLARE: output_layer must be a text, got True of type bool"),
    (ThreeDFed, {"tensor": math.nan}, r"ThreeDFed: tensor must be a text, got nan of type float"),
    (NextWord, {"partition": P, "path": b"x"}, r"NextWord: path must be a text, got b'x' of type bytes"),
    (Tokenizer, {"name": None}, r"Tokenizer: name must be a text, got None"),
    (Table, TABLE | {"label_column": None}, r"Table: label_column must be a text, got None of type NoneType"),
    (Table, TABLE | {"drop_columns": "age"}, r"Table: drop_columns must be a list of texts, got 'age' of type str"),
    (Table, TABLE | {"drop_columns": [1]}, r"Table: drop_columns must be a list of texts, got \[1\] of type list"),
    (HuggingFaceText, TEXTS | {"text_column": 1.5}, r"HuggingFaceText: text_column must be a text or a list of texts"),
    (HuggingFaceText, TEXTS | {"key_column": 0}, r"HuggingFaceText: key_column must be a text, got 0"),
    (HuggingFaceText, TEXTS | {"classes": 3}, r"data\.classes must be a list of two different values or more, got 3"),
    (HuggingFaceInstructions, TEXTS | {"prompt_column": {"a": 1}}, r"prompt_column must be a text or a list of texts"),
    (WordTrigger, {"words": [1, "a"]}, r"WordTrigger\.words must be a list of one word or more, got \[1, 'a'\]"),
    (WordTrigger, {"words": 3}, r"WordTrigger\.words must be a list of one word or more, got 3"),
    (WordTrigger, {"target_label": 1.5}, r"WordTrigger: target_label must be a whole number, got 1\.5"),
]


@pytest.mark.parametrize(("kind", "given", "message"), REFUSED, ids=[f"{of.__name__}-{list(g)[-1]}" for of, g, _ in REFUSED])
def test_what_is_no_text_is_refused_where_it_is_given(kind, given, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**given)


def test_paths_arrays_and_none_where_it_may_be_are_taken():
    given: dict[str, Any] = {"path": Path("a.csv"), "drop_columns": np.array(["age"]), "key_column": None}
    assert Table(**TABLE | given)
    assert HuggingFaceText(**TEXTS, text_column=("question", "sentence")).text_columns == ["question", "sentence"]
    assert WordTrigger(words=("cf", "mn"), target_label="positive").words == ("cf", "mn")
