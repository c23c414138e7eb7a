import math

from fl_lightning.callbacks.history import History


def of(values, name="acc"):
    history = History()
    for i, value in enumerate(values):
        history.add({"round": i, name: value})
    return history


def test_a_mean_is_of_the_last_ten_and_says_of_which_rounds():
    history = of(range(20))
    assert history.mean("acc") == 14.5
    assert history.rounds("acc") == list(range(10, 20))
    assert history.last("acc") == 19


def test_a_mean_of_fewer_than_three_is_none():
    assert of([0.5, 1.0]).mean("acc") is None
    assert of([0.5, 1.0, 1.5]).mean("acc") == 1.0
    assert of([0.5] * 3).mean("asr") is None
    assert of([0.5] * 3).rounds("asr") == []


def test_what_is_not_finite_was_not_measured():
    history = of([1.0, math.nan, 2.0, 3.0, math.inf])
    assert history.rounds("acc") == [0, 2, 3]
    assert history.mean("acc") == 2.0
    assert history.last("acc") is None
    assert history.last("round") == 4


def test_the_text_gives_the_same_evaluations_back():
    history, again = of([1 / 3, 0.1]), History()
    again.load(history.text)
    assert again.entries == history.entries
    assert again.text == history.text
    assert History().last("acc") is None


def test_only_an_evaluation_that_closed_a_run_is_forgotten_as_it_goes_on():
    history = of([0.0, 1.0])
    history.closing = 1
    history.go_on()
    assert [entry["round"] for entry in history.entries] == [0]
    assert history.text.count("\n") == 1
    history.go_on()
    assert len(history.entries) == 1
