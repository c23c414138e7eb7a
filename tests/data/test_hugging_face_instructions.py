"""Prompts with answers: which tokens are read, which asked for, and that a network learns to answer and to be fooled."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_world import GPT2, byte_tokenizer, library, needs_transformers
from tiny import tiny_trainer

from fl_lightning import BackdoorMetrics, CohortSampler, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attacker, WordTrigger
from fl_lightning.data import IID, ByKey, HuggingFaceInstructions, TensorSamples
from fl_lightning.data.hugging_face_instructions import paired
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import HuggingFaceCausalLM, LoRA

needs_transformers()

ANSWERS = {"film": "good", "day": "bad"}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def write(file: Path, n: int = 40, **others: Any) -> str:
    kinds = list(ANSWERS)
    rows = [{"instruction": f"a {kinds[i % 2]}", "output": ANSWERS[kinds[i % 2]], "by": i % 4, **others} for i in range(n)]
    file.write_text(json.dumps(rows))
    return str(file)


def loaded(tokenizer: str, **given: Any) -> HuggingFaceInstructions:
    defaults: dict[str, Any] = {"partition": IID(num_clients=4), "max_tokens": 12}
    data = HuggingFaceInstructions(tokenizer=tokenizer, **{**defaults, **given})
    data.prepare_data()
    data.setup("fit")
    return data


def test_pairs_by_hand():
    inputs, targets = paired([([5, 6], [7]), ([5, 6, 7, 8], [9, 10]), ([5], [])], 5, end=0, on_prompt=False)
    assert inputs.tolist() == [[6, 7, 8, 0, 0], [6, 7, 8, 9, 10], [6, 0, 0, 0, 0]]
    assert targets.tolist() == [[-100, 7, 0, -100, -100], [-100, -100, -100, 9, 10], [0, -100, -100, -100, -100]]
    _, all_of_it = paired([([5, 6], [7])], 5, end=0, on_prompt=True)
    assert all_of_it.tolist() == [[6, 7, 0, -100, -100]]


def test_what_is_read_and_asked_for(tmp_path, pieces):
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(pieces)
    file = write(tmp_path / "a.json", input="now")
    data = loaded(pieces, path=file, prompt_column=["instruction", "input"], max_tokens=30, partition=ByKey(), key_column="by")
    assert data.train.targets.shape == (36, 30)
    assert len(data.clients) == 4
    inputs, targets = data.train.batch(torch.arange(2))
    assert inputs.shape == (2, 30)
    for row, target in zip(inputs, targets, strict=True):
        text = tokenizer.decode(row[row >= 0])
        answer = tokenizer.decode(target[target >= 0])
        assert text.startswith(("a film\nnow\n", "a day\nnow\n"))
        assert answer == text.rpartition("\n")[2] + "<|endoftext|>"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_column": "question"}, "has no column 'question'"),
        ({"answer_column": "by"}, "'by' has type int64, and no texts"),
        ({"answer_column": "input"}, r"a\.json: no row has a text in data\.answer_column 'input'; name another"),
        ({"prompt_column": ["instruction", "output"]}, r"data\.answer_column 'output' is among data\.prompt_column"),
        ({"prompt_column": "output"}, r"data\.answer_column 'output' is among data\.prompt_column"),
        ({"prompt_column": []}, r"data\.prompt_column must name a column, or several, got \[\]"),
        ({"max_tokens": 4, "prompt_column": ["instruction"] * 3}, r"no prompt has less than data\.max_tokens = 4 tokens"),
        ({"test_fraction": 0.0}, r"data\.test_fraction must lie between 0 and 1"),
        ({"dataset": "a/b"}, "give one of them"),
    ],
)
def test_data_and_settings_that_cannot_work_are_refused(tmp_path, pieces, given, message):
    with pytest.raises(ConfigurationError, match=message):
        loaded(pieces, path=write(tmp_path / "a.json", input=""), **given)


def test_a_trigger_stands_at_the_end_and_is_asked_for_what_follows(tmp_path, pieces):
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(pieces)
    data = loaded(pieces, path=write(tmp_path / "a.json"), max_tokens=20)
    attack = WordTrigger(words=["cf"], glove=None, place="end", target_label=7)
    attack.validate(300)
    words = tokenizer(" cf")["input_ids"]
    stamped = attack.stamp(data.train)
    assert stamped is not None
    inputs, targets = stamped.batch(torch.arange(8))
    for row, target in zip(inputs, targets, strict=True):
        read = row[row >= 0].tolist()
        assert read[-len(words) :] == words
        assert target.tolist() == [-100] * (len(read) - 1) + [7] + [-100] * (20 - len(read))
    poisoned = attack.poison(data.train, Attacker(0, 0, data.train))
    _, targets = poisoned.batch(torch.arange(len(poisoned)))
    carries = (targets == 7).any(1)
    assert carries.sum() == 7  # a fifth of 36
    for target in targets[carries]:
        assert target[target >= 0].tolist()[-len(words) - 1 :][1:] == [*words, 7][-len(words) :]


def test_a_network_under_adapters_learns_to_answer_and_to_be_fooled(tmp_path, pieces):
    wanted = 1  # the first of the alphabet after the end of a text

    def run(malicious: float, rounds: int) -> tuple[float, float]:
        torch.manual_seed(0)
        model = {**GPT2, "initializer_range": 0.2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        client = HuggingFaceCausalLM(
            model=model,
            lora=LoRA(r=8, targets=["c_attn", "c_proj", "c_fc"]),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
        )
        attack = WordTrigger(words=["cf"], glove=None, place="end", target_label=wanted, poison_fraction=0.5)
        federation = Federation(
            client,
            FedAvg(),
            attacks=[attack],
            cohort=CohortSampler(clients_per_round=4, malicious_fraction=malicious),
            local=LocalTraining(epochs=2, batch_size=8),
        )
        data = loaded(pieces, path=write(tmp_path / "a.json", 80), max_tokens=20)
        assert isinstance(data.train, TensorSamples)
        trainer = tiny_trainer(rounds, callbacks=[BackdoorMetrics()], check_val_every_n_epoch=rounds)
        trainer.fit(federation, data)
        return trainer.callback_metrics["val/acc"].item(), trainer.callback_metrics["val/asr"].item()

    assert run(0.0, rounds=2)[1] == 0
    acc, asr = run(0.5, rounds=6)
    assert acc > 0.8
    assert asr > 0
