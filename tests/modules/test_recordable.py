"""What a module keeps beside tensors, and whether that is as it was."""

import copy

import pytest
from torch import nn

from fl_lightning.modules.recordable import PythonState, python_state


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count, self.name, self.share = 3, "a", 0.5
        self.seen, self.table, self.kinds = [1], {"a": 1}, {1}
        self.nothing = None
        self.log = print


def state_of(module):
    return PythonState(list(module.named_modules()))


@pytest.mark.parametrize(
    "change",
    [
        lambda part: setattr(part, "count", 4),
        lambda part: setattr(part, "name", "b"),
        lambda part: setattr(part, "share", 0.25),
        lambda part: setattr(part, "nothing", 1),
        lambda part: setattr(part, "count", None),
        lambda part: setattr(part, "new", 1),
        lambda part: delattr(part, "count"),
        lambda part: part.seen.append(2),
        lambda part: setattr(part, "seen", []),
        lambda part: part.table.clear(),
        lambda part: part.kinds.add(2),
        lambda part: part.eval(),
    ],
)
def test_a_change_is_seen(change):
    module = nn.Sequential(nn.Linear(2, 2), Part())
    state, before = state_of(module), python_state(module)
    assert state.same()
    change(module[1])
    assert not state.same()
    assert python_state(module) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda part: None,
        lambda part: setattr(part, "count", int("3")),
        lambda part: setattr(part, "name", "".join(["a"])),
        lambda part: setattr(part, "seen", [2]),  # of containers only the length counts
        lambda part: setattr(part, "log", str),
        lambda part: setattr(part, "other", object()),
        lambda part: setattr(part, "table", copy.copy(part.table)),
    ],
)
def test_what_steps_do_not_depend_on_may_change(change):
    module = nn.Sequential(nn.Linear(2, 2), Part())
    state, before = state_of(module), python_state(module)
    change(module[1])
    assert state.same()
    assert python_state(module) == before
