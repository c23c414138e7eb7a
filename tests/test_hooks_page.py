"""The page of hooks has every one of them, with its arguments, and what it shows runs."""

import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
from ranks import on_ranks
from tiny import Relabel, fit, tiny_federation

from fl_lightning.aggregators import Aggregator, FedAvg
from fl_lightning.attacks import Attack
from fl_lightning.data import Partition, Samples
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.federation import Federation
from fl_lightning.server.outcome import RoundObserver

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "hooks.md").read_text()
CLASSES = {
    kind.__name__: kind for kind in (RoundObserver, Aggregator, Attack, FederatedDataModule, Partition, Samples, Federation)
}
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
ROW = re.compile(r"^\| `(\w+)(?:\((.*?)\))?` \| (.*?) \| (all|trainer|node|with data) \|$", flags=re.MULTILINE)
DUNDER = ("__call__", "__len__", "__getitem__")


def hooks(kind: type) -> dict[str, list[str] | None]:
    """Public methods of a class with the names of their arguments, and properties with None."""
    found: dict[str, list[str] | None] = {}
    for name, entry in vars(kind).items():
        if name.startswith("_") and name not in DUNDER:
            continue
        if isinstance(entry, property):
            found[name] = None
        elif callable(entry) or isinstance(entry, (staticmethod, classmethod)):
            function = entry.__func__ if isinstance(entry, (staticmethod, classmethod)) else entry
            found[name] = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    return found


class Row(NamedTuple):
    """What the page says of a hook."""

    arguments: list[str] | None
    when: str
    ranks: str


def rows(section: str) -> dict[str, Row]:
    found = {}
    for match in ROW.finditer(SECTIONS[section]):
        name, given, when, ranks = match.groups()
        found[name] = Row(None if given is None else given.split(", ") if given else [], when, ranks)
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_has_a_row_with_its_arguments(name: str) -> None:
    expected, there = hooks(CLASSES[name]), {hook: row.arguments for hook, row in rows(name).items()}
    assert sorted(there) == sorted(expected), "docs/reference/hooks.md must have a row for each hook and no other"
    for hook, arguments in expected.items():
        given = there[hook]
        if given and given[-1] == "...":
            given, arguments = given[:-1], (arguments or [])[: len(given) - 1]
        assert given == arguments, f"{name}.{hook}: docs/reference/hooks.md says {given}"


def test_the_example_does_what_the_page_says() -> None:
    setting, *sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    names: dict[str, Any] = {"__name__": "hooks"}
    run_example(setting, names)
    fit_of_the_page, trainers = names["fit"], []

    def fit_and_note(*args: Any, **kwargs: Any) -> L.Trainer:
        trainers.append(fit_of_the_page(*args, **kwargs))
        return trainers[-1]

    names["fit"], seen = fit_and_note, {}
    for section in sections:
        run_example(section, names)
        seen[section.split()[0]] = trainers.pop()
        assert not trainers, "one federation is trained per class"
    assert {trainer.global_step for trainer in seen.values()} == {2}
    assert isinstance(names["Loudest"](), RoundObserver)
    assert seen["RoundObserver"].callback_metrics["loudest"] > 0
    assert "client/rounds" in seen["Aggregator"].callback_metrics
    assert names["rule"].memory["momentum"].tolist() == [2.0, 5.0], "`forget` makes it as before the first round"
    assert "val/asr_first_ten" in seen["Attack"].callback_metrics
    assert names["attack"].called.count("plan") == names["attack"].resumed_after == 2
    assert seen["FederatedDataModule"].datamodule.class_names == ("left", "right")
    assert [of.tolist() for of in seen["Partition"].datamodule.clients] == [list(range(i, 200, 8)) for i in range(8)]
    assert type(seen["Samples"].datamodule.train) is names["Line"]
    assert seen["Federation"].lightning_module is names["careful"]
    assert names["careful"].called.count("server_step") == 2
    assert set(seen) == set(CLASSES)


def run_example(text: str, names: dict[str, Any]) -> None:
    """Run the Python in a part of the page."""
    (script,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(script, "docs/reference/hooks.md", "exec"), names)


NOT_SHOWN = ("By Lightning", "The same under", "By `on_load_checkpoint`")


@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_occurs_in_its_classs_example(name: str) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    for hook, row in rows(name).items():
        if hook not in DUNDER and not (name == "Federation" and row.when.startswith(NOT_SHOWN)):
            assert re.search(rf"\b{hook}\b", example), hook


# ---- on which ranks --------------------------------------------------------------------------------------------------


def spied(kind: type, base: type, counts: Counter[str]) -> type:
    """A subclass of `base` that counts the calls of all methods that are hooks of `kind`."""

    def counting(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return getattr(base, name)(self, *args, **kwargs)

        return method

    return type("Spied", (base,), {name: counting(name) for name, arguments in hooks(kind).items() if arguments is not None})


def calls_on_a_rank(world: int, folder: str) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {name: Counter() for name in ("Aggregator", "Attack", "RoundObserver")}
    attack = spied(Attack, Relabel, found["Attack"])()
    rule = spied(Aggregator, FedAvg, found["Aggregator"])()

    class Observer(L.Callback):
        def on_aggregate(self, *_: Any) -> None:
            found["RoundObserver"]["on_aggregate"] += 1

    federation = tiny_federation(attacks=[attack], aggregator=rule)
    trainer = fit(federation, rounds=2, devices=world, callbacks=[Observer()])
    trainer.save_checkpoint(Path(folder) / "a.ckpt")
    return {name: dict(counts) for name, counts in found.items()}


def test_hooks_are_called_on_the_ranks_that_the_page_says(tmp_path: Path) -> None:
    ranks = on_ranks(2, calls_on_a_rank, 2, str(tmp_path))
    for name in ranks[0]:
        for hook, row in rows(name).items():
            counts = [of_rank[name].get(hook, 0) for of_rank in ranks]
            if row.ranks == "all":
                assert counts[0] == counts[1], f"{name}.{hook}: {counts}"
            elif row.ranks == "node":
                assert counts == [1, 0], f"{name}.{hook}: {counts}"
            if row.arguments is not None and not row.when.startswith(("Called by", "Where an attacker", "When one is read")):
                assert sum(counts) > 0, f"{name}.{hook} is not called"
