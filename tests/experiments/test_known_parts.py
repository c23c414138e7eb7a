"""Parts of settings that several cells have in common: parsed once, and read as if each cell had been parsed as a whole."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from fl_lightning import ConfigurationError
from fl_lightning.configuration import resolve
from fl_lightning.experiments.known_parts import KnownParts, said
from fl_lightning.experiments.reading import CellReader
from fl_lightning.experiments.settings import arguments
from fl_lightning.experiments.sweep import parse_sweep
from fl_lightning.files.yaml_files import as_argument, read_yaml

BASE = f"{Path(__file__).parents[2]}/configs/quickstart.yaml"
MIXED = f"""
base: [{BASE}, {{trainer: {{max_epochs: 4}}, model: {{cohort: {{start_round: 2}}}}}}]
axes:
  rule:
    other settings: {{model: {{aggregator: {{init_args: {{tau: 0.3}}}}}}}}
    mean:
      - {{model: {{aggregator: {{class_path: TrimmedMean, init_args: {{alpha: 0.1}}}}}}}}
      - {{model.aggregator.init_args.alpha: 0.2}}
    rule in a rule: {{model: {{aggregator: {{class_path: Bucketing, init_args: {{rule: {{class_path: Median}}}}}}}}}}
    trusting: {{model: {{aggregator: FLTrust}}, data: {{init_args: {{root: {{samples: 10}}}}}}}}
  attack:
    two more: [{{model: {{attacks+: [{{class_path: Collude}}]}}}}, {{model.attacks+: [{{class_path: ModelReplacement}}]}}]
    others: [{{model: {{attacks: [{{class_path: SignFlip, init_args: {{scale: 2.0}}}}]}}}}, {{model: {{local: local.yaml}}}}]
    seed: {{seed_everything: 7, model: {{seed: 7}}, trainer.callbacks: [{{class_path: DetectionMetrics}}]}}
"""
PREFIX = "prefix: {rounds: 2, settings: {model: {aggregator: FedAvg, attacks: [{class_path: Adaptive}]}}}\n"


@pytest.fixture(autouse=True)
def files():
    Path("local.yaml").write_text("epochs: 2")
    Path("whole.yaml").write_text("{local: {batch_size: 16}}")


def outcomes(text: str, *, whole: bool, given=None, overrides=()) -> tuple[list[str], int]:
    """What comes of each cell, settings or a message, and how often one is parsed."""
    sweep = parse_sweep(read_yaml(text), Path("some.yaml"))
    reader, parse, found, parsed = CellReader(3, given or {}, overrides), CellReader.parse, [], []
    reader.whole |= whole

    def counted(args):
        parsed.append(args)
        return parse(reader, args)

    reader.parse = counted
    for cell in sweep.cells:
        try:
            found.append(json.dumps(asdict(reader.settle(cell.layers, sweep.prefix_of(cell)))))  # in which order counts
        except ConfigurationError as error:
            found.append(str(error))
    return found, len(parsed)


@pytest.mark.parametrize(
    ("more", "given", "overrides"),
    [
        (
            PREFIX + "exclude: [{rule: mean}, {rule: other settings}]",
            {},
            ["--trainer.check_val_every_n_epoch", "3"],
        ),
        (
            "exclude: [{rule: trusting}, {attack: seed}]",
            {"TrimmedMean.alpha": 0.15, "Bucketing.rule": {"class_path": "Krum"}},
            ["--model.attacks+=Collude"],
        ),
    ],
)
def test_cells_come_out_as_if_each_were_parsed_as_a_whole(more, given, overrides):
    expected, all_of_them = outcomes(MIXED + more, whole=True, given=given, overrides=overrides)
    found, parsed = outcomes(MIXED + more, whole=False, given=given, overrides=overrides)
    assert found == expected
    assert len(set(found)) == len(found)
    assert parsed < all_of_them


def test_what_classes_are_made_from_is_the_same_too():
    cells = parse_sweep(read_yaml(f"{MIXED}exclude: [{{attack: seed}}]"), Path("some.yaml")).cells
    reader, found = CellReader(0, {}, []), 0
    for cell in cells:
        if (shared := reader.parts.find(cell.layers)) is None:
            reader.read(cell.layers)
            continue
        found += 1
        config = resolve(["fit", *arguments(cell.layers)])
        parsed = reader.reader.config
        assert json.dumps(shared.config) == json.dumps(shared.unset) == json.dumps(config)
        assert repr({**vars(shared.parsed.fit), "config": None}) == repr({**vars(parsed.fit), "config": None})
    assert (
        found == 3
    )  # the second attack under each rule but the first; another seed is a part of everything, `one word` of anything


SAYINGS = [
    "{model: {aggregator: Krum}}",
    "{model.aggregator.class_path: fl_lightning.aggregators.Median}",
    "{model: {aggregator: {class_path: TrimmedMean, init_args: {alpha: 0.1}}}}",
    "{model.aggregator.init_args.alpha: 0.2}",
    "{model: {attacks: []}}",
    "{model: {attacks+: [Collude]}}",
    "{model.attacks+: [{class_path: SignFlip, init_args: {scale: 2.0}}], trainer: {callbacks+: [{class_path: FlipRates}]}}",
    "{trainer.callbacks: [{class_path: DetectionMetrics}]}",
    "{trainer: {callbacks: null}, model.local.batch_size: 8}",
    "{seed_everything: 5}",
    "{seed_everything: 5, data: {init_args: {seed: 5}}}",
    "{model: {seed: 0}}",
    "{data: Digits}",
    "{data: {init_args: {partition: {class_path: Dirichlet, init_args: {num_clients: 30, alpha: 0.5}}}}}",
    "{data.init_args.partition.init_args.num_clients: 25}",
    "deep/further.yaml",
    "whole.yaml",
]


@pytest.mark.parametrize("draw", [1])  # more were tried: one takes seconds
def test_whatever_layers_say_and_in_whatever_order(draw):
    Path("deep").mkdir()
    Path("deep/local.yaml").write_text("epochs: 3")  # a path is meant from where it is written
    Path("deep/further.yaml").write_text("{model: {local: local.yaml, attacks+: [Collude]}}")
    draws = random.Random(draw)
    labels = [f"[{', '.join(draws.sample(SAYINGS, draws.randint(1, 2)))}]" for _ in range(4)]
    base = f"base: [{BASE}, {{trainer: {{max_epochs: 3}}}}]"
    text = f"{base}\naxes:\n  one: {{a: {labels[0]}, b: {labels[1]}}}\n  two: {{a: null, b: {labels[2]}, c: {labels[3]}}}\n"
    given, overrides = draws.choice([({}, []), ({}, ["--model.attacks+=Collude"]), ({"TrimmedMean.alpha": 0.15}, [])])
    (expected, most), (found, parses) = (outcomes(text, whole=w, given=given, overrides=overrides) for w in (True, False))
    assert found == expected
    assert parses <= most


PAIRS = f"base: {BASE}\naxes:\n  one: {{a: null, b: FIRST}}\n  two: {{a: null, b: SECOND}}\n"


@pytest.mark.parametrize(
    ("one", "two", "message", "parses"),
    [
        ("{trainer: {min_epochs: 8}}", "{trainer: {max_epochs: 5}}", "trainer.min_epochs = 8 is more than the 5 rounds", 3),
        ("{seed_everything: 5}", "{model: {seed: 0}}", "model.seed is 0, but all draws are made from seed_everything", 4),
    ],
)
def test_a_combination_that_is_wrong_is_refused_though_its_parts_are_right(one, two, message, parses):
    text = PAIRS.replace("FIRST", one).replace("SECOND", two)
    expected, _ = outcomes(text, whole=True)
    assert outcomes(text, whole=False) == (expected, parses)
    assert [message in outcome for outcome in expected] == [False, False, False, True]
    assert all(outcome.startswith("{") for outcome in expected[:3])


WRONG = """
axes:
  wrong:
    nothing: null
    value: {model: {aggregator: {class_path: Invariant, init_args: {tau: 2}}}}
    name: {model: {aggregatr: FedAvg}}
    no list: {model: {aggregator+: FedAvg}}
    number: {model: 3}
    empty: {trainer: null}
    no name: {model: {"": 3}}
    ignored: {$schema: x, modle: {}}
    right: {model: whole.yaml}
    federation: {model: {class_path: fl_lightning.Federation, init_args: {aggregator: FedAvg}}}
    within a list: {model: {attacks.init_args.x: 2}}
    file: {data: missing.yaml}
"""


def test_a_mistake_is_told_in_the_same_words():
    (expected, _), (found, _) = (outcomes(f"base: {BASE}{WRONG}", whole=whole) for whole in (True, False))
    assert found == expected
    assert [outcome.startswith("{") for outcome in found[:3]] == [True, False, False]


def test_a_setting_of_a_class_is_missed_where_no_part_names_the_class():
    text = PAIRS.replace("FIRST", "{model: {aggregator: Krum}}").replace("SECOND", "{model: {attacks+: Collude}}")
    overrides = ["--with", "Krum.num_malicious=1"]
    (expected, _), (found, _) = (outcomes(text, whole=whole, overrides=overrides) for whole in (True, False))
    assert found == expected
    assert [outcome.startswith("{") for outcome in found] == [False, False, True, True]


def test_layers_are_told_apart_by_what_stands_in_them():
    assert said({"model": {"attacks": [1]}}) != said({"model": {"attacks": [True]}})
    assert said({"model": {"attacks": [1]}}) != said({"model": {"attacks+": [1]}})
    assert set(said({"model": {"a": 1, "b.c": 2}, "data.x": 3, "trainer.x+": 4}) or ()) == {
        *(("model", "a"), ("model", "b"), ("data",), ("trainer", "x"))
    }
    assert said("there is no such file") is None
    Path("some.yaml").write_text("{3: 4}")
    assert said("some.yaml") is None
    Path("some.yaml").write_text(as_argument({"model": {"a": 1}, "data": 3}))
    assert said("some.yaml") == {("model", "a"): ("some.yaml",), ("data",): ("some.yaml",)}


def test_nothing_is_known_before_something_was_read():
    assert KnownParts().find([]) is None
    assert KnownParts().find([{"model": {"a": 1}}]) is None
