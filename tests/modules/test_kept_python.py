import io
import random
from array import array
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchmetrics import SumMetric

from fl_lightning.modules.kept_python import KeptPython

OUTSIDE = np.random.default_rng(0)


COUNT = 0
LINES: list[int] = []


@lru_cache
def cached(n: int) -> int:
    return n


def helper() -> None:
    global COUNT
    COUNT += 1
    LINES.append(cached(COUNT))


class Slotted:
    __slots__ = ("n", "seen", "unset")

    def __init__(self) -> None:
        self.n, self.seen = 0, [1]


class Both(Slotted):
    """Has a `__dict__`, too."""


@dataclass(frozen=True, slots=True)
class Frozen:
    n: int


def counter() -> Any:
    n = 0

    def count() -> None:
        nonlocal n
        n += 1

    return count


class Holder(L.LightningModule):
    history: list[int] = []  # noqa: RUF012  the mistake that is meant
    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"a": 1})
        self.layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.n = 0
        self.counts = defaultdict(int, x=1)
        self.recent = deque([1, 2], maxlen=3)
        self.seen = {1}
        self.deep = SimpleNamespace(inner={"list": [1]})
        self.moving = torch.zeros(3)
        self.array = np.zeros(3)
        self.hidden = [nn.Linear(2, 2)]
        self.alias = self.layer[0].weight
        self.nothing: Any = None
        self.big = list(range(5000))
        self.nan = torch.tensor([torch.nan, 1.0])
        self.results = [float("nan"), torch.tensor([1.0, torch.nan])]
        self.graph = torch.eye(3).to_sparse()
        self.slotted, self.both, self.frozen, self.count = Slotted(), Both(), Frozen(1), counter()
        self.table, self.column = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", "y"]}), pd.Series([1, 2])
        self.codes, self.bytes = array("d", [1.0, float("nan")]), bytearray(b"ab")
        self.large = torch.zeros(2**22 + 1)
        self.of_clients = {i: [i] for i in range(5000)}


def changes(change) -> list[str]:
    """What one change makes, which is then put back."""
    holder = Holder()
    kept = KeptPython({"": holder})
    assert list(kept.changes()) == []
    change(holder)
    found = kept.restore()
    assert list(kept.changes()) == []
    return found


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda h: setattr(h, "n", 1), "n"),
        (lambda h: setattr(h, "new", 1), "new"),
        (lambda h: delattr(h, "nothing"), "nothing"),
        (lambda h: setattr(h, "nothing", torch.ones(2, requires_grad=True).sum()), "nothing"),
        (lambda h: setattr(h, "moving", torch.ones(3)), "moving"),
        (lambda h: h.moving.add_(1), "moving"),
        (lambda h: h.array.__iadd__(1), "array"),
        (lambda h: h.counts.__setitem__("y", 2), "counts.y"),
        (lambda h: h.recent.append(3), "recent"),
        (lambda h: h.seen.add(3), "seen"),
        (lambda h: h.deep.inner["list"].append(2), "deep.inner['list']"),
        (lambda h: setattr(h.deep, "more", 2), "deep.more"),
        (lambda h: h.hparams.update(a=2), "_hparams.a"),
        (lambda h: setattr(h.layer[1], "momentum", 0.5), "layer.1.momentum"),
        (lambda h: h.history.append(1), "Holder['history']"),
        (lambda h: setattr(Holder, "total", 3), "Holder.total"),
        (lambda h: h.hidden[0].weight.data.add_(1), "hidden[0].weight"),
        (lambda h: h.big.append(1), "big"),
        (lambda h: h.nan.fill_(torch.nan), "nan"),
        (lambda h: setattr(h.moving, "data", torch.ones(2)), "moving"),
        (lambda h: h.moving.resize_(4), "moving"),
        (lambda h: setattr(h, "graph", 1), "graph"),
        (lambda h: setattr(h.slotted, "n", 1), "slotted.n"),
        (lambda h: setattr(h.slotted, "unset", 1), "slotted.unset"),
        (lambda h: delattr(h.slotted, "n"), "slotted.n"),
        (lambda h: h.slotted.seen.append(2), "slotted.seen"),
        (lambda h: setattr(h.both, "n", 1), "both.n"),
        (lambda h: setattr(h.both, "more", 1), "both.more"),
        (lambda h: object.__setattr__(h.frozen, "n", 2), "frozen.n"),
        (lambda h: h.count(), "count.count.n"),
        (lambda h: h.table.__setitem__("a", 3.0), "table"),
        (lambda h: h.table.loc.__setitem__((0, "a"), 3.0), "table"),
        (lambda h: h.table.insert(0, "c", 1), "table"),
        (lambda h: h.table.__setattr__("columns", ["a", "z"]), "table"),
        (lambda h: h.column.__setitem__(0, 5), "column"),
        (lambda h: h.codes.append(2.0), "codes"),
        (lambda h: h.codes.__setitem__(0, 2.0), "codes"),
        (lambda h: h.bytes.extend(b"c"), "bytes"),
        (lambda h: h.large.add_(1), "large"),
        (lambda h: setattr(h.large, "data", torch.ones(2**22 + 1)), "large"),
        (lambda h: h.of_clients[4000].append(2), "of_clients[4000]"),
    ],
)
def test_what_changes_is_named_and_put_back(change, path):
    found = changes(change)
    assert [of.replace("Holder.history", "Holder['history']") for of in found] == [path]
    assert Holder.history == []
    assert Holder.total == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda h: setattr(h, "nan", torch.tensor([torch.nan, 1.0])),
        lambda h: setattr(h, "array", np.zeros(3)),
        lambda h: h.results.__setitem__(0, float("nan")),
        lambda h: h.results.__setitem__(1, torch.tensor([1.0, torch.nan])),
        lambda h: setattr(h, "recent", deque([1, 2], maxlen=3)),
        lambda h: setattr(h, "table", h.table.copy()),
        lambda h: h.large.copy_(torch.zeros(2**22 + 1)),
    ],
)
def test_what_is_made_anew_with_the_same_values_has_not_changed(change):
    assert changes(change) == []


def test_what_grew_before_it_was_replaced_by_its_equal_is_put_back():
    holder = SimpleNamespace(seen=[[1]])
    kept = KeptPython({"": holder})
    holder.seen[0].append(2)
    holder.seen = [[1, 2]]
    assert set(kept.restore()) == {"seen[0]", "seen"}
    assert holder.seen == [[1]]


def test_metrics_are_kept_if_asked_for():
    module = nn.Module()
    seen = module.seen = SumMetric()
    kept = {metrics: KeptPython({"": module}, metrics=metrics) for metrics in (False, True)}
    seen.update(3)
    assert not list(kept[False].changes())
    assert "seen.sum_value" in kept[True].restore()
    assert seen.sum_value == 0


def test_tensors_that_are_kept_otherwise_are_left_alone():
    def train(holder):
        with torch.no_grad():
            for parameter in holder.parameters():
                parameter.add_(1)
            holder.layer[1].running_mean.add_(1)
        holder.eval()
        holder.log = print

    assert changes(train) == ["log"]


def test_generators_are_found_wherever_they_are():
    class Transform:
        def __init__(self) -> None:
            self.rng = np.random.default_rng(1)

        def __call__(self, x):
            return x + self.rng.random()

    inside, default = random.Random(2), torch.Generator()

    def augment(x, draws=default):
        return [x + inside.random() + OUTSIDE.random() for _ in range(2)]

    found = KeptPython({"t": Transform(), "f": partial(augment), "r": np.random.RandomState(0)}, values=False).generators
    assert {type(of).__name__ for of in found.values()} == {"Generator", "Random", "RandomState"}
    assert len(found) == 5
    assert found["t.rng"] is not OUTSIDE
    assert found["OUTSIDE"] is OUTSIDE
    assert KeptPython({"m": torch.nn.Dropout(), "f": lambda: random.random()}).generators == {}


def test_an_iterator_is_named():
    assert list(KeptPython({"data": SimpleNamespace(stream=iter([1]))}).iterators) == ["data.stream"]


def test_what_refers_to_itself_ends():
    loop: dict[str, Any] = {"n": 1}
    loop["self"] = loop
    kept = KeptPython({"loop": loop})
    loop["n"] = 2
    assert kept.restore() == ["loop.n"]
    assert loop["n"] == 1


def test_caches_may_fill_but_not_change():
    holder = SimpleNamespace(read={0: "a"}, rows=[None, 1], seen=[])
    kept = KeptPython({"data": holder}, caches=True)
    holder.read[1], holder.rows[0] = "b", 2
    assert kept.restore() == []
    assert (holder.read, holder.rows) == ({0: "a", 1: "b"}, [2, 1])
    holder.read[0], holder.rows[1] = "c", 3
    holder.seen.append(1)
    assert len(kept.restore()) >= 3
    assert (holder.read[0], holder.rows[1], holder.seen) == ("a", 1, [])


def test_tables_have_their_values_again():
    holder = Holder()
    kept, before = KeptPython({"": holder}), holder.table.copy()
    for _ in range(2):
        holder.table.loc[0, "a"] = 7.0
        holder.table["new"] = 1
        assert kept.restore() == ["table"]
        pd.testing.assert_frame_equal(holder.table, before)


def test_what_cannot_be_put_back_is_told():
    class Opaque:
        table = np.zeros(2**21 + 1)

    holder = SimpleNamespace(of=Opaque(), cached=cached, sparse=torch.eye(2).to_sparse(), many=list(range(20_000)), n=1)
    found = KeptPython({"h": holder}).unkept
    assert set(found) == {"Opaque.table", "h.cached", "h.sparse", "h.many"}


def test_global_names_are_followed_if_asked_for():
    global COUNT
    assert KeptPython({"f": helper}).globals == {}
    found = KeptPython({"f": helper}, values=False, follow=True)
    assert found.globals[__name__].names >= {"COUNT", "LINES", "cached"}
    assert list(found.unkept) == [f"{__name__}.cached"]
    kept, lines = KeptPython(found.globals), list(LINES)
    count = COUNT
    helper()
    assert sorted(kept.restore()) == [f"{__name__}.COUNT", f"{__name__}.LINES"]
    assert (count, lines) == (COUNT, LINES)


@pytest.mark.parametrize("made", [io.StringIO, io.BytesIO])
def test_files_in_memory_have_their_text_and_their_place_again(made):
    text: Any = "abcdef" if made is io.StringIO else b"abcdef"
    holder = SimpleNamespace(file=made(text))
    holder.file.seek(2)
    kept = KeptPython({"h": holder})
    assert kept.restore() == []
    for change in (lambda f: f.write(text[:1]), lambda f: f.read(1), lambda f: f.truncate(0), lambda f: f.seek(9)):
        change(holder.file)
        assert kept.restore() == ["h.file"]
        assert (holder.file.getvalue(), holder.file.tell()) == (text, 2)
    holder.file.close()  # for good, which can only be told
    assert kept.restore() == ["h.file"]


def test_attributes_of_a_table_are_put_back():
    holder = Holder()
    holder.table.attrs["read"] = 0
    kept = KeptPython({"": holder})
    holder.table.attrs["read"] += 1
    assert kept.restore() == ["table"]
    assert holder.table.attrs == {"read": 0}
