"""The league's page is what its table of runs says."""

from results_pages import RESULTS, script

PAGE = script("league_page")


def test_the_page_is_what_the_table_says() -> None:
    text, frame = (RESULTS / "league.md").read_text(), PAGE["runs"]()
    assert set(PAGE["blocks"].names(text, "league.csv")) == set(PAGE["BLOCKS"])
    assert PAGE["written"](text, frame) == text, "write it anew: python docs/results/league_page.py"
    assert not frame.duplicated(PAGE["KEYS"]).any()


def test_a_board_has_the_order_of_the_sweeps_file_and_means_over_seeds() -> None:
    frame = PAGE["runs"]().iloc[:0]
    rows = [("Invariant", "none", 0, 0.5), ("FedAvg", "ValueTrigger", 0, 0.25), ("FedAvg", "ValueTrigger", 1, 0.75)]
    for rule, attack, seed, asr in rows:
        frame.loc[len(frame), ["task", "rule", "attack", "seed", "asr_end"]] = ["phishing", rule, attack, seed, asr]
    told = PAGE["board"](frame.astype({"asr_end": float}), "phishing", "asr_end").splitlines()
    assert told == [
        "| rule | none | ValueTrigger |",
        "| --- | --- | --- |",
        "| FedAvg | - | .500 |",
        "| Invariant | .500 | - |",
    ]
