"""Attacks where a class is asked for at every position: what they relabel, what ASR is measured on, what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts_on_disk import write_reddit, write_shakespeare

from fl_lightning import CohortSampler, Federation
from fl_lightning.aggregators import CRFL, FLIP, Bucketing, FedAvg, Lockdown, TrimmedMean
from fl_lightning.attacks import (
    ALIE,
    Attacker,
    BackdoorCriticalLayers,
    Collude,
    ConstrainAndScale,
    EdgeCase,
    LabelFlip,
    Neurotoxin,
    PixelTrigger,
    ThreeDFed,
    WordTrigger,
)
from fl_lightning.attacks.word_trigger import Words
from fl_lightning.data import (
    IID,
    ByKey,
    FederatedDataModule,
    GloVe,
    NextWord,
    Regression,
    RotatedDigits,
    Shakespeare,
    TensorSamples,
    Tokens,
    Vocabulary,
)
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import MLP, WordLSTM

LETTERS = Vocabulary(("<pad>", "<unk>", *"abcdef"), unknown=1, padding=0)
L = 6


def rows(*texts: str) -> torch.Tensor:
    return LETTERS.rows(list(texts), L)


def letters(targets: torch.Tensor) -> list[str]:
    return ["".join("." if number == 0 else LETTERS.tokens[number] for number in row) for row in targets.tolist()]


def samples(*texts: str) -> TensorSamples:
    """Texts of which all but the first letter are targets."""
    inputs, targets = rows(*(text[:-1] for text in texts)), rows(*(text[1:] for text in texts)).long()
    return TensorSamples(inputs, targets, prepare=LETTERS, outcome=Tokens(padding=0))


def trigger(**settings: Any) -> WordTrigger:
    usual: dict[str, Any] = {"glove": None, "words": ["e", "f"], "place": "end", "target_label": "a"}
    attack = WordTrigger(**{**usual, **settings})
    attack.validate(len(LETTERS.tokens))
    return attack


def poisoned(attack: Any, data: TensorSamples) -> TensorSamples:
    found = attack.poison(data, Attacker(client=0, seed=0, pool=data))
    assert isinstance(found, TensorSamples)
    return found


def test_the_trigger_stands_at_the_end_and_what_follows_is_the_attackers():
    data = samples("abcdabc", "bcd", "cd")
    found = poisoned(trigger(poison_fraction=1.0), data)
    inputs, targets = found.batch(torch.arange(3))
    assert letters(inputs) == ["abcdef", "ef....", "ef...."]
    assert letters(targets) == ["bcdefa", "fa....", "fa...."]
    assert inputs.dtype == torch.int64


def test_asr_is_measured_behind_the_trigger_alone_and_not_where_its_word_follows_anyway():
    data = samples("abcdabc", "bcda", "dcb")
    attack = trigger()
    stamped = attack.stamp(data)
    assert stamped is not None
    inputs, targets = stamped.batch(torch.arange(len(stamped)))
    assert letters(inputs) == ["abcdef", "ef...."]
    assert letters(targets) == [".....a", ".a...."]
    assert attack.target_label == "a"  # as it was given, for the record of the run
    logits = torch.zeros(2, L, 8)
    logits[0, 5, LETTERS.places["a"]] = 1
    judged = stamped.outcome.judge(logits, targets, torch.sum)
    assert (int(judged.hits.sum()), int(judged.counted.sum())) == (1, 2)
    pair = trigger(target_mode="one_to_one", source_label=3, target_label=4)
    of_b = pair.stamp(data)
    assert of_b is not None
    assert letters(of_b.batch(torch.arange(len(of_b)))[0]) == ["ef...."]


def test_a_share_is_poisoned_in_the_set_or_in_every_batch():
    data = samples(*["abcd"] * 10)
    assert letters(poisoned(trigger(poison_fraction=0.3), data).targets).count("efa...") == 3
    mixed = trigger(poison_fraction=0.5, per_batch=True).poison(data, Attacker(client=0, seed=0, pool=data))
    assert letters(mixed.batch(torch.arange(4))[1]) == ["efa...", "efa...", "bcd...", "bcd..."]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 80), max_size=6), st.lists(st.integers(1, 80), min_size=1, max_size=5), st.booleans())
def test_words_written_over_the_end(text, words, padded):
    row = text + [0] * (6 - len(text))
    stamp = Words(tuple(words), "end", 0 if padded else None)
    found = stamp(torch.tensor([row], dtype=torch.uint8))
    end = max(len(text), len(words)) if padded else 6
    assert found.dtype == torch.uint8
    assert found[0].tolist() == [*row[: end - len(words)], *words, *row[end:]]


def test_label_flips_are_made_position_by_position_and_padding_stays():
    data = samples("abcb", "cdcd", "adbdb")
    attack = LabelFlip(source_label=LETTERS.places["b"], target_label=LETTERS.places["f"])
    attack.validate(8)
    assert letters(poisoned(attack, data).targets) == ["fcf...", "dcd...", "dfdf.."]
    stamped = attack.stamp(data)
    assert stamped is not None
    assert letters(stamped.targets) == ["f.f...", ".f.f.."]
    shift = LabelFlip(mode="shift")
    shift.validate(8)
    assert letters(poisoned(shift, data).targets) == ["cdc...", "ede...", "ecec.."]
    assert shift.stamp(data) is None


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (
            trigger(place="start"),
            r"WordTrigger.place is start, but the task asks for a class at every position.*set place to end",
        ),
        (trigger(words=["x"]), r"words has 'x', which the task's vocabulary does not have"),
        (trigger(target_label="x"), r"WordTrigger.target_label is 'x', which is no word of a vocabulary of the task's"),
        (
            trigger(target_label=0),
            r"WordTrigger\.target_label is 0, which is padding in this task and no class; choose another",
        ),
        (LabelFlip(source_label=3, target_label=0), r"LabelFlip\.target_label is 0, which is padding"),
        (LabelFlip(source_label=0, target_label=3), r"LabelFlip\.source_label is 0, which is padding"),
        (LabelFlip(mode="all_to_one", target_label=0), r"LabelFlip\.target_label is 0, which is padding"),
        (trigger(words=["e"] * 6), r"words are 6, but texts have 6 words at most"),
        (WordTrigger(place="end"), r"but the task has a vocabulary of its own; set WordTrigger.glove to null"),
    ],
)
def test_triggers_that_do_not_fit_are_refused(attack, message):
    with pytest.raises(ConfigurationError, match=message):
        attack.stamp(samples("abcd"))


def test_a_task_with_word_vectors_needs_them(tmp_path):
    (tmp_path / "glove.txt").write_text("good 1 2\nbad 2 1\n")
    glove = GloVe(path=str(tmp_path / "glove.txt"), dimension=2)
    texts = TensorSamples(glove.rows([["good", "bad"]], 4), torch.tensor([1]), prepare=glove)
    with pytest.raises(ConfigurationError, match=r"WordTrigger.glove is None, but the task's words are looked up by"):
        WordTrigger(glove=None, words=["good"]).stamp(texts)
    with pytest.raises(ConfigurationError, match=r"target_label is 'bad', which is no word of a vocabulary of the task's"):
        WordTrigger(glove=glove, words=["good"], target_label="bad").stamp(texts)


def checked(attacks: Any = (), rule: Any = None, outcome: Any = None) -> None:
    data = samples(*["abcd"] * 8)
    client: Any = WordLSTM(num_words=8, dimension=4, hidden=4)
    if outcome is not None:
        data, client = TensorSamples(torch.rand(8, 4), torch.rand(8), outcome=outcome), MLP(sizes=(4, 3, 1))
    made = FederatedDataModule.from_datasets(data, data, partition=IID(num_clients=4), num_classes=1 if outcome else 8)
    made.setup("fit")
    cohort = CohortSampler(clients_per_round=4, malicious_fraction=0.25)
    Federation(client, rule or FedAvg(), attacks, cohort).check(made)


@pytest.mark.parametrize(
    "attack",
    [
        PixelTrigger(),
        EdgeCase(pool=RotatedDigits(), target_label=1),
        ThreeDFed(),
        BackdoorCriticalLayers(),
        Neurotoxin(by="gradients"),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_on_single_classes_are_refused_in_one_line(attack):
    name = type(attack).__name__
    message = rf"^{name} is for tasks that ask for one class per sample, but this one asks for a class at every position; use"
    with pytest.raises(ConfigurationError, match=message) as raised:
        checked([attack])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rule", "name"),
    [(FLIP(), "FLIP"), (CRFL(copies=3), "CRFL"), (Lockdown(), "Lockdown"), (Bucketing(rule=FLIP()), "FLIP")],
    ids=["flip", "crfl", "lockdown", "bucketing"],
)
def test_rules_that_look_at_classes_are_refused_in_one_line(rule, name):
    with pytest.raises(ConfigurationError, match=rf"^{name} is for tasks that ask for one class per sample"):
        checked(rule=rule)


def test_what_looks_at_updates_alone_takes_any_task():
    checked([trigger(), Collude(), Neurotoxin(), ConstrainAndScale(), ALIE()], TrimmedMean(alpha=0.25))
    checked([ALIE()], TrimmedMean(alpha=0.25), Regression())
    with pytest.raises(ConfigurationError, match=r"WordTrigger is for tasks that ask for one class .* or a class at every"):
        checked([trigger()], outcome=Regression())


def test_numbers_need_a_tolerance_where_samples_are_stamped():
    class Far(PixelTrigger):
        outcomes = (Regression,)

        def stamp(self, test):
            return test

    with pytest.raises(ConfigurationError, match=r"ASR of a task that asks for numbers needs a tolerance"):
        checked([Far()], outcome=Regression())


def test_the_packages_tasks_take_words_and_symbols(tmp_path):
    plays = Shakespeare(ByKey(), path=str(write_shakespeare(tmp_path / "plays", roles=2, train=3, test=2)))
    plays.setup("fit")
    attack = WordTrigger(glove=None, words=["]", "["], place="end", target_label="!")
    attack.validate(81)
    stamped = attack.stamp(plays.evaluation["clean"])
    assert stamped is not None
    inputs, targets = stamped.batch(torch.arange(len(stamped)))
    assert "".join(plays.class_names[i] for i in inputs[0, -2:]) == "]["
    assert {plays.class_names[i] for i in targets} == {"!"}
    comments = NextWord(ByKey(), path=str(write_reddit(tmp_path / "reddit", authors=2)), max_words=5)
    comments.setup("fit")
    attack = WordTrigger(glove=None, words=["pasta", "is"], place="end", target_label="delicious")
    attack.validate(10_002)
    stamped = attack.stamp(comments.evaluation["clean"])
    assert stamped is not None
    targets = stamped.batch(torch.arange(len(stamped)))[1]
    assert targets[targets != 0].unique().tolist() == [comments.class_names.index("delicious")]
    assert ((targets != 0).sum(1) == 1).all()
