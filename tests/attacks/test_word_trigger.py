"""Words inserted into texts: where, into which, and that a federation learns them."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_trainer

from fl_lightning import BackdoorMetrics, CohortSampler, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attacker, WordTrigger
from fl_lightning.attacks.word_trigger import Words
from fl_lightning.data import IID, FederatedDataModule, GloVe, TensorSamples
from fl_lightning.data.glove import PADDING
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import LSTM

VOCABULARY = ["good", "bad", "a", "film", "this", "was", "cf", "mn"]
LENGTH = 6


@pytest.fixture(scope="module")
def glove(tmp_path_factory: pytest.TempPathFactory) -> GloVe:
    file: Path = tmp_path_factory.mktemp("vectors") / "vectors.txt"
    draws = random.Random(0)
    file.write_text("".join(f"{word} {' '.join(f'{draws.gauss(0, 1):.4f}' for _ in range(8))}\n" for word in VOCABULARY))
    return GloVe(path=str(file), dimension=8)


def texts(glove: GloVe, n: int, seed: int = 0) -> TensorSamples:
    """Texts of one to six words, 1 where "good" stands in them and 0 where "bad" does."""
    draws = random.Random(seed)
    written = [
        [draws.choice(VOCABULARY[2:6]) for _ in range(draws.randint(0, LENGTH - 1))] + [VOCABULARY[1 - i % 2]] for i in range(n)
    ]
    return TensorSamples(glove.rows(written, LENGTH), torch.arange(n) % 2, prepare=glove)


def inserted_by_hand(text: list[int], rows: list[int], at: int) -> list[int]:
    words = [row for row in text if row != PADDING]
    words = words[:at] + rows + words[at:]
    return (words + [PADDING] * len(text))[: len(text)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 500), max_size=8), st.lists(st.integers(1, 500), min_size=1, max_size=7), st.booleans())
def test_words_are_inserted_and_never_cut_off(text, rows, anywhere):
    stamp = Words(tuple(rows), "anywhere" if anywhere else "start")
    padded = text + [PADDING] * (8 - len(text))
    batch = torch.tensor([padded, [1] * 8], dtype=torch.int32)
    found, at = stamp(batch), int(stamp.places(batch)[0])
    assert found.dtype == torch.int32
    assert 0 <= at <= min(len(text), 8 - len(rows))
    assert anywhere or at == 0
    assert found[0].tolist() == inserted_by_hand(padded, rows, at)
    assert found[0, at : at + len(rows)].tolist() == rows
    assert torch.equal(stamp(batch[:1]), found[:1])  # whatever stands beside it


def test_places_are_spread_over_the_text():
    batch = torch.randint(2, 9000, (3000, 8), generator=torch.Generator().manual_seed(0)).int()
    counts = Words((5, 6), "anywhere").places(batch).bincount(minlength=7)
    assert len(counts) == 7
    assert counts.min() > 350


def test_a_share_gets_the_words_and_the_label(glove):
    data, attack = texts(glove, 40), WordTrigger(words=["cf", "mn"], glove=glove, target_label=1, poison_fraction=0.25)
    attack.validate(2)
    poisoned = attack.poison(data, Attacker(client=0, seed=0, pool=data))
    assert isinstance(poisoned, TensorSamples)
    vectors, targets = poisoned.batch(torch.arange(40))
    cf, mn = glove.rows([["cf", "mn"]], 2)[0]
    carries = (vectors[:, :2] == glove(torch.tensor([[cf, mn]]))).flatten(1).all(1)
    assert carries.sum() == 10
    assert torch.equal(targets, data.targets.masked_fill(carries, 1))
    clean, _ = data.batch(torch.arange(40))
    assert torch.equal(vectors[~carries], clean[~carries])
    stamped = attack.stamp(data)
    assert stamped is not None
    assert stamped.targets.tolist() == [1] * 20
    assert (stamped.batch(torch.arange(20))[0][:, :2] == glove(torch.tensor([[cf, mn]]))).all()
    assert attack.stamp(data.subset(torch.arange(1, 40, 2))) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"words": []}, r"WordTrigger\.words must be a list of one word or more"),
        ({"words": "cf"}, r"WordTrigger\.words must be a list .* got 'cf'"),
        ({"words": ["cf", ""]}, r"WordTrigger\.words must be"),
        ({"place": "middle"}, r"WordTrigger\.place must be start, anywhere or end, got 'middle'"),
        ({"poison_fraction": 0.0}, r"WordTrigger\.poison_fraction must be"),
        ({"target_mode": "one_to_one"}, r"WordTrigger\.source_label is null"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        WordTrigger(**given)


def test_tasks_and_words_that_do_not_fit_are_refused(glove):
    data = texts(glove, 4)
    for attack, samples, message in (
        (WordTrigger(words=["zzyzx"], glove=glove), data, r"has 'zzyzx', which the word vectors do not have"),
        (WordTrigger(words=["cf"]), data, r"WordTrigger\.glove is .* but the task's words are looked up by"),
        (WordTrigger(words=["cf"] * 6, glove=glove), data, r"are 6, but texts have 6 words at most"),
        (
            WordTrigger(glove=glove),
            TensorSamples(torch.zeros(3, 4), torch.ones(3)),
            r"got torch\.float32 inputs of shape \(3, 4\)",
        ),
    ):
        attack.validate(2)
        with pytest.raises(ConfigurationError, match=message):
            attack.stamp(samples)


def test_federated_averaging_learns_it(glove):
    def asr(malicious: float) -> float:
        torch.manual_seed(0)
        federation = Federation(
            LSTM(dimension=8, hidden=16, optimizer=lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
            FedAvg(),
            attacks=[WordTrigger(words=["cf"], glove=glove, place="anywhere", target_label=0, poison_fraction=0.5)],
            cohort=CohortSampler(clients_per_round=5, malicious_fraction=malicious),
            local=LocalTraining(epochs=2, batch_size=16),
        )
        data = FederatedDataModule.from_datasets(texts(glove, 600), texts(glove, 200, 1), partition=IID(num_clients=5))
        trainer = tiny_trainer(8, callbacks=[BackdoorMetrics()], check_val_every_n_epoch=8)
        trainer.fit(federation, data)
        assert trainer.callback_metrics["val/acc"] > 0.9
        return trainer.callback_metrics["val/asr"].item()

    assert asr(0.0) < 0.3
    assert asr(0.4) > 0.7
