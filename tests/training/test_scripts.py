"""Steps that earlier runs have recorded spare the tracing, are tried before they are used, and change no bit."""

import json
from typing import Any

import pytest
import torch
from test_executor import made, weights_after

from fl_lightning.experiments.packets import pair, send
from fl_lightning.experiments.warm_server import Server
from fl_lightning.models import MLP
from fl_lightning.modules.traced_graphs import MOST_COMPILED, NotRecordableError, compiled
from fl_lightning.training import recordings, scripts
from fl_lightning.training.scripts import MOST_CHARACTERS, Scripts, step_kind
from fl_lightning.training.trials import TRIALS


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    found = Scripts()
    monkeypatch.setattr(recordings, "SCRIPTS", found)
    return found


@pytest.fixture
def told(memory: Scripts) -> list[dict[str, Any]]:
    """What a run has told, as it arrives."""
    messages: list[dict[str, Any]] = []
    memory.tell = lambda message: messages.append(json.loads(json.dumps(message)))
    executor = made("graph")
    weights_after(executor)
    assert executor.chosen == "graph"
    memory.tell = None
    assert messages
    return messages


def never(*_: Any) -> Any:
    raise NotRecordableError("it is not to be traced")


def test_a_run_that_is_given_the_steps_traces_none_and_has_the_same_bits(memory, told, monkeypatch):
    expected = weights_after(made("sequential"))
    monkeypatch.setattr(recordings, "traced", never)
    assert torch.equal(weights_after(made("graph")), expected)  # by plain steps, as there is no other way
    for message in told:
        memory.note(**message)
    executor = made("graph")
    assert torch.equal(weights_after(executor), expected)
    assert executor.chosen == "graph"
    assert executor.recorded is not None
    assert executor.recorded.recordings


def broken(message: dict[str, Any], **script: Any) -> dict[str, Any]:
    return {**message, "script": {**message["script"], **script}}


@pytest.mark.parametrize("how", ["other numbers", "no steps", "another state"])
def test_steps_that_are_not_these_are_traced_anew(memory, told, monkeypatch, how):
    expected, traced = weights_after(made("sequential")), []
    real = recordings.traced
    monkeypatch.setattr(recordings, "traced", lambda *arguments: traced.append(1) or real(*arguments))
    for message in told:
        if how == "other numbers":
            assert message["script"]["constants"]
            constants = [(of, 0.5 * value) for of, value in message["script"]["constants"]]
            memory.note(**broken(message, constants=constants))
        elif how == "no steps":
            memory.note(**broken(message, code="def steps(:"))
        else:
            code = message["script"]["code"].replace("state_1 = state[1]", "state_1 = state[99]")
            assert code != message["script"]["code"]
            memory.note(**broken(message, code=code))
    executor = made("graph")
    assert torch.equal(weights_after(executor), expected)
    assert executor.chosen == "graph"
    assert len(traced) == len(told)


class Own(MLP):
    """Of a user, who may change it between two runs."""

    recordable = True


def test_steps_of_a_users_own_class_and_long_ones_are_not_told(memory):
    found: list[Any] = []
    memory.tell = found.append
    weights_after(made("graph", Own(sizes=(6, 16, 3))))
    assert not found
    long = scripts.Script("#" * (MOST_CHARACTERS + 1), [], [])
    memory.made("one", long, draws=False)
    memory.made("one", None, draws=False)
    assert not found


def test_kinds_differ_by_all_that_they_are_about():
    assert step_kind("one", (0.1, 2)) == step_kind("one", (0.1, 2))
    assert len({step_kind("one", (0.1, 2)), step_kind("one", (0.2, 2)), step_kind("two", (0.1, 2))}) == 3


def test_a_server_keeps_what_runs_tell(told, monkeypatch):
    kept = Scripts()
    monkeypatch.setattr(scripts, "SCRIPTS", kept)
    monkeypatch.setattr(TRIALS, "best", {})
    requests, _ = pair()
    server = Server(requests)
    send(server.found[1], ["a kind", 1.0, 2.0])
    for message in told:
        send(server.found[1], message)
    server.learn()
    assert list(TRIALS.best) == ["a kind"]
    assert kept.kept.keys() == {message["kind"] for message in told}
    for end in (requests, *server.found):
        end.close()


def test_no_more_kinds_are_kept_than_a_process_keeps_compiled(memory, told):
    for i in range(MOST_COMPILED + 5):
        memory.note(**{**told[0], "kind": str(i)})
    assert len(memory.kept) == MOST_COMPILED == compiled.cache_info().maxsize
