"""The one reader of YAML."""

import math
import time

import pytest
import yaml

from fl_lightning.files.yaml_files import as_argument, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1e-3", {"a": 0.001}),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: {b: 1}\nc: {b: 1}", {"a": {"b": 1}, "c": {"b": 1}}),
        ('{1: a, "1": b}', {1: "a", "1": "b"}),
        ("base: &b {x: 1, y: 2}\nown: {<<: *b, x: 3}", {"base": {"x": 1, "y": 2}, "own": {"x": 3, "y": 2}}),
        ("a: &a [1, 2]\nb: *a", {"a": [1, 2], "b": [1, 2]}),
        ("", None),
        ("word", "word"),
    ],
)
def test_what_is_meant_is_read(text, content):
    assert read_yaml(text) == content


BOMB = "k0: &k0 [x, x, x]\n" + "\n".join(f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}, *k{i - 1}]" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "the key a stands twice"),
        ('a: 1\n"a": 2', "the key a stands twice"),
        ("a: {1: x, 1.0: y}", r"the key 1\.0 stands twice"),
        ("a: {1: x, true: y}", "the key true stands twice"),
        ("a: {b: [{c: 1, c: 2}]}", "the key c stands twice"),
        ("base: &b {x: 1}\nown: {<<: *b, x: 2, x: 3}", "the key x stands twice"),
        ("&a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        (BOMB, "more than 100,000 values"),
        ("[" * 500 + "]" * 500, "nested more than 100 deep"),
        ("[" * 50000 + "]" * 50000, "nest"),
        ("a: [1", "line 1"),
        ("a: 1\n---\nb: 2", "document"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(text, message):
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)
    assert time.monotonic() - began < 20


def test_what_is_written_is_read_as_it_was():
    settings = {"b": [1, 0.5, math.inf, None, True], "a": {"text": "1e3", "long": "x" * 200}}
    for write in (as_argument, write_yaml):
        assert read_yaml(write(settings)) == settings
    assert "\n" not in as_argument(settings).strip()
