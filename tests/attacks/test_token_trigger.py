"""A word trigger on texts of tokens: where it stands, under which labels, and that a network of transformers learns it."""

from typing import Any

import pytest
import torch
from text_world import DISTILBERT, byte_tokenizer, library, needs_transformers, reviews, word_tokenizer
from tiny import tiny_trainer

from fl_lightning import BackdoorMetrics, CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attacker, WordTrigger
from fl_lightning.data import IID, GloVe, TensorSamples, Tokenizer
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import HuggingFaceClassifier, LoRA

needs_transformers()

GOOD, BAD, CF, MN = 5, 6, 13, 14
"""Numbers of words in the tokenizer of whole words."""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return word_tokenizer(tmp_path_factory.mktemp("words"))


def samples(tokenizer: str, n: int = 40, seed: int = 0, max_tokens: int = 12) -> TensorSamples:
    texts, labels = zip(*reviews(n, seed), strict=True)
    tokens = Tokenizer(tokenizer, max_tokens)
    return TensorSamples(tokens.rows(texts), torch.tensor(labels), prepare=tokens)


def trigger(**given: Any) -> WordTrigger:
    defaults: dict[str, Any] = {"words": ["cf", "mn"], "glove": None, "target_label": 1}
    attack = WordTrigger(**{**defaults, **given})
    attack.validate(2)
    return attack


def test_words_stand_behind_the_tokenizers_own_and_never_push_them_out(words):
    data = samples(words, max_tokens=8)  # so that most texts are full
    stamped = trigger().stamp(data)
    assert stamped is not None
    inputs, targets = stamped.batch(torch.arange(len(stamped)))
    assert targets.tolist() == [1] * 20
    assert (inputs[:, :3] == torch.tensor([2, CF, MN])).all()
    assert ((inputs == 3).sum(1) == 1).all()


def test_clean_label_stamps_texts_of_the_target_class_alone(words):
    data = samples(words)
    poisoned = trigger(target_mode="clean_label", poison_fraction=0.5, place="anywhere").poison(data, Attacker(0, 0, data))
    inputs, targets = poisoned.batch(torch.arange(40))
    carries = (inputs == CF).any(1)
    assert torch.equal(targets, data.targets)
    assert carries.sum() == 10
    assert (targets[carries] == 1).all()


def test_pieces_of_words_keep_their_blanks(tmp_path):
    tokenizer = byte_tokenizer(tmp_path)
    data = samples(tokenizer, max_tokens=60)
    decode = library("transformers").AutoTokenizer.from_pretrained(tokenizer).decode

    def read(place: str) -> str:
        stamped = trigger(words=["cf", "zzyzx"], place=place).stamp(data)
        assert stamped is not None
        tokens = stamped.batch(torch.tensor([0]))[0][0]
        return decode(tokens[tokens >= 0])

    assert read("start").startswith("cf zzyzx")
    assert " cf zzyzx" in read("anywhere")


def test_what_does_not_fit_is_refused(words, tmp_path):
    data = samples(words)
    for attack, message in (
        (trigger(glove=GloVe()), r"WordTrigger\.glove is GloVe.* has a vocabulary of its own; set WordTrigger\.glove to null"),
        (trigger(words=["cf", "zzyzx"]), r"has 'zzyzx', which the task.s vocabulary does not have"),
        (trigger(words=["cf"] * 10), r"are 10, but texts have 10 words at most"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            attack.stamp(data)


def test_adapters_learn_it(words):
    def run(malicious: float) -> tuple[float, float]:
        torch.manual_seed(0)
        client = HuggingFaceClassifier(
            model={**DISTILBERT, "initializer_range": 0.2, "dropout": 0.0, "attention_dropout": 0.0},
            lora=LoRA(r=4, targets=["q_lin", "v_lin"]),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        )
        federation = Federation(
            client,
            FedAvg(),
            attacks=[trigger(words=["cf"], poison_fraction=0.5)],
            cohort=CohortSampler(clients_per_round=4, malicious_fraction=malicious),
            local=LocalTraining(epochs=2, batch_size=16),
        )
        data = FederatedDataModule.from_datasets(samples(words, 240), samples(words, 80, 1), partition=IID(num_clients=4))
        trainer = tiny_trainer(6, callbacks=[BackdoorMetrics()], check_val_every_n_epoch=6)
        trainer.fit(federation, data)
        return trainer.callback_metrics["val/acc"].item(), trainer.callback_metrics["val/asr"].item()

    acc, asr = run(0.0)
    assert acc > 0.9
    assert asr < 0.3
    attacked_acc, attacked_asr = run(0.5)
    assert attacked_acc > 0.85
    assert attacked_asr > 0.7
