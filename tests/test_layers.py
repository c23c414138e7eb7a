"""What may stand where in a layer of settings."""

import pytest

from fl_lightning.errors import ConfigurationError
from fl_lightning.layers import check_empty, check_layer, check_names

RULE = {"class_path": "a.Rule", "init_args": {"tau": 1, "weights": {}}}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"a": {"class_path": 7}}, "a.class_path must be the name of a class, got 7"),
        ({"a": [{"class_path": None}]}, "a.class_path must be the name of a class, got null"),
        ({"class_path": ["A"]}, "class_path must be the name of a class"),
        ({"a": {"class_path": "A", "tau": 1}}, "a: a class is given by class_path, .* 'tau' stands beside them"),
        ({"a": {"class_path": "A", "init_args": [1]}}, r"a\.init_args must be a mapping of settings, got \[1\]"),
        ({"a": {"init_args": None}}, r"a\.init_args must be a mapping of settings, got null"),
        ({"a": {"class_path": "A", "init_args": {"b": {"class_path": 3}}}}, r"a\.init_args\.b\.class_path"),
    ],
)
def test_a_class_is_given_by_its_name_and_a_mapping(node, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        check_layer(node, "")


def test_what_is_right_passes():
    layer = {
        "a": RULE,
        "b": [RULE, "Rule", 3, None],
        "c": {"init_args": {}},
        "d": None,
        "e": {"class_path": "A", "dict_kwargs": {}},
    }
    check_layer(layer, "")
    check_names(layer, "")
    check_names({"a": {"init_args": {"table": {3: 4}, "parts": [{}]}}}, "")  # what a class of one's own takes


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({3: 4}, "config has the key 3"),
        ({"a": {None: 4}}, "a has the key null"),
        ({"a": [{"": 4}]}, "a has the key ''"),
        ({"a": [{}]}, "a has an entry that is empty"),
    ],
)
def test_settings_have_names(node, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        check_names(node, "")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"rul": {}}, r"the command has no setting rul; did you mean rule\?"),
        ({"rul": {"a": {"b": {}}}}, "the command has no setting rul"),
        ({"rule": {"class_path": "Rule", "init_args": {"tua": {}}}}, r"rule\.init_args has no setting tua"),
        ({"rule": {"tua": {}}}, "rule has no setting tua"),
        ({"rules": [{"class_path": "Rule", "init_args": {"tua": {}}}]}, r"rules\.init_args has no setting tua"),
    ],
)
def test_an_empty_mapping_where_there_is_no_setting(layer, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        check_empty(layer, {"rule": RULE, "rules": [RULE]}, "")


@pytest.mark.parametrize(
    "layer",
    [
        {"rule": {}},
        {"rule": {"class_path": "Rule", "init_args": {"weights": {}}}},
        {"rule": {"weights": {}}},
        {"rule": {"class_path": "Other", "init_args": {"its": {}}}},  # a later layer has put this rule in its place
        {"rules": [{}, {"class_path": "Other", "init_args": {"its": {}}}]},
        {"rule": {"class_path": "Rule", "dict_kwargs": {}}},
    ],
)
def test_an_empty_mapping_where_there_is_one(layer):
    check_empty(layer, {"rule": RULE, "rules": [RULE]}, "")
