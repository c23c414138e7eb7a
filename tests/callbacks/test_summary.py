import pytest

from fl_lightning.callbacks.summary import show

RECORD = {
    "state": "finished",
    "reason": "all 7 rounds are done",
    "acc": 0.5,
    "asr": None,
    "evaluated_round": 7,
    "acc_last10": None,
    "asr_last10": None,
    "acc_last10_rounds": [7],
    "asr_last10_rounds": [],
    "rounds": 7,
    "seed": 3,
    "seconds": {"exchange": 1.0},
    "client_updates_per_second": 2.0,
    "world_size": 1,
    "excluded_updates": 0,
    "refused_rounds": 0,
}


@pytest.fixture
def shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def shown(folder=tmp_path, **changes):
        show({**RECORD, **changes}, folder)
        return capsys.readouterr().out

    return shown


def test_the_last_round_is_named_and_a_mean_of_too_few_is_not_given(shown):
    text = shown()
    assert "round 7" in text
    assert "mean" not in text
    assert "0.5000" in text


def test_a_mean_says_of_how_many_evaluations_and_of_which_rounds(shown):
    text = shown(acc_last10=0.25, acc_last10_rounds=[5, 6, 7])
    assert "mean of 3 evaluations, rounds 5 to 7" in text
    assert "0.2500" in text


def test_a_run_that_is_not_over_says_so_and_how_it_goes_on(shown, tmp_path):
    assert "The run stopped: max_time was over.\n" in shown(state="stopped", reason="max_time was over")
    (tmp_path / "last.ckpt").touch()
    assert "The run stopped: max_time was over; the same command with --ckpt_path last goes on." in shown(
        state="stopped", reason="max_time was over"
    )
    assert "stopped" not in shown()


def test_what_was_taken_back_may_be_an_edit_alone(shown):
    """The round itself counts then."""
    said = "In 2 rounds a step of the server, or an edit that the rule made of the model, was taken back"
    assert said in shown(refused_rounds=2)
    assert "taken back" not in shown()


def test_a_trial_names_no_file(shown):
    assert "A trial: nothing was written." in shown(folder=None)
    assert "run.json" not in shown(folder=None)


def test_a_run_without_evaluation(shown):
    assert "round -" in shown(evaluated_round=None, acc=None, acc_last10_rounds=[])
