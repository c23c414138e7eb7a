"""The league's pages and pictures are what its table of runs says."""

import math
import re

import pytest
import yaml
from results_pages import RESULTS, script

PAGE = script("league_page")


@pytest.mark.parametrize("page", PAGE["PAGES"])
def test_a_page_is_what_the_table_says(page: str) -> None:
    text, frame = (RESULTS / page).read_text(), PAGE["runs"]()
    assert PAGE["blocks"].names(text, "league.csv") == list(PAGE["PAGES"][page])
    assert PAGE["written"](page, frame) == text, "write it anew: python docs/results/league_page.py"
    assert not frame.duplicated(PAGE["KEYS"]).any()


@pytest.mark.parametrize("task", PAGE["DRAWN"])
@pytest.mark.parametrize("name", PAGE["MEASURES"])
def test_a_heat_map_shows_the_values_of_its_board(task: str, name: str) -> None:
    table = PAGE["board"](PAGE["runs"](), task, PAGE["MEASURES"][name][0])
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (RESULTS / f"league_{task}_{name}.svg").read_text())
    for value in table.to_numpy().ravel():
        text = "-" if math.isnan(value) else f"{value:.0f}" if name == "lifespan" else PAGE["number"](value)
        shown.remove(text.replace("-", "\u2013"))
    for label in (*table.index, *table.columns):
        shown.remove(label)
    assert len(shown) == 3  # what the axes are called, and the title


def test_a_board_has_the_order_of_the_sweeps_file_and_means_over_seeds() -> None:
    frame = PAGE["runs"]().iloc[:0]
    rows = [("Invariant", "none", 0, 0.5), ("FedAvg", "ValueTrigger", 0, 0.25), ("FedAvg", "ValueTrigger", 1, 0.75)]
    for rule, attack, seed, asr in rows:
        frame.loc[len(frame), ["task", "rule", "attack", "seed", "asr_end"]] = ["phishing", rule, attack, seed, asr]
    told = PAGE["board"](frame.astype({"asr_end": float}), "phishing", "asr_end")
    assert (list(told.index), list(told.columns)) == (["FedAvg", "Invariant"], ["none", "ValueTrigger"])
    assert told.loc["FedAvg", "ValueTrigger"] == told.loc["Invariant", "none"] == 0.5
    assert math.isnan(told.loc["FedAvg", "none"])


def test_a_rule_is_told_by_its_worst_attack() -> None:
    frame = PAGE["runs"]().iloc[:0]
    rows = [("none", 0.9, 0.0, 0.99), ("PGD", 0.25, 0.125, 0.9), ("Collude", 0.75, 0.0, 0.9)]
    for attack, asr, lost, acc in rows:
        at = ["task", "rule", "attack", "seed", "asr_end", "acc_lost", "acc", "auroc", "lived"]
        frame.loc[len(frame), at] = ["phishing", "Krum", attack, 0, asr, lost, acc, math.nan, 2.0]
    frame = frame.astype(dict.fromkeys(("asr_end", "acc_lost", "acc", "auroc", "lived"), float))
    last = PAGE["by_rule"](frame, "phishing").splitlines()[-1]
    assert last == "| Krum | .750 | .750, Collude | 1 of 2 | .990 | .125, PGD | - | 2 |"


def test_an_attack_has_got_through_by_half_of_what_is_left_to_be_taught() -> None:
    """A trigger that a clean model falls for already says nothing of a rule until the ASR is well above that."""
    frame = PAGE["runs"]().iloc[:0]
    rows = [("digits", "IBA", 0.7), ("digits", "PixelTrigger", 0.5), ("digits", "none", 1.0), ("untaught", "IBA", 0.5)]
    for task, attack, asr in rows:
        frame.loc[len(frame), ["task", "rule", "attack", "seed", "asr_end"]] = [task, "Krum", attack, 0, asr]
    frame = frame.astype({"asr_end": float})
    assert PAGE["got_through"](frame, "digits").loc["Krum"].to_dict() == {"PixelTrigger": True, "IBA": False}
    frame.loc[0, "asr_end"] = 0.75
    assert PAGE["got_through"](frame, "digits").loc["Krum", "IBA"]
    assert PAGE["untaught"](frame, "digits").to_dict() == {"IBA": 0.5}
    assert PAGE["untaught"](frame, "phishing").empty


def test_triggers_that_nobody_teaches_are_those_of_the_league() -> None:
    """A change of one file alone would compare an attack with another one."""
    league, alone = (yaml.safe_load((PAGE["SWEEPS"] / f"{name}.yaml").read_text()) for name in ("digits", "untaught"))
    assert {key: alone["prefix"][key] for key in ("rounds", "settings")} == {
        key: league["prefix"][key] for key in ("rounds", "settings")
    }
    window = ("max_epochs", "check_val_every_n_epoch"), ("cohort",)
    for part, keys in zip(("trainer", "model"), window, strict=True):
        assert {key: alone["base"][1][part][key] for key in keys} == {key: league["base"][1][part][key] for key in keys}
    for label, layer in alone["axes"]["attack"].items():
        ((key, attacks),) = layer["model"].items()
        assert attacks.pop()["class_path"] == "IPM"  # next to nothing in the place of each update
        given = league["axes"]["attack"][label]
        assert (key, attacks) == (("attacks+", []) if given is None else ("attacks", given["model"]["attacks"]))
