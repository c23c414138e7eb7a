"""Networks of transformers as clients: adapters and head alone are trained, as a loop by hand with peft trains them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed import KillAt, KilledError
from ranks import on_ranks
from text_world import BERT, DISTILBERT, GPT2, library, needs_transformers
from tiny import tiny_trainer
from torch import Tensor

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.callbacks import LastCheckpoint, RunRecord
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import HuggingFaceClassifier, LoRA

needs_transformers()

WIDE = {"initializer_range": 0.3}  # so that adapters move by far more than the tolerance
NETWORKS = {
    "bert": {**BERT, **WIDE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {**GPT2, **WIDE, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
RATE, STEPS, ROUNDS, CLIENTS = 0.2, 3, 3, 4


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def token_samples(n: int, seed: int) -> TensorSamples:
    """Texts of two to seven tokens; 1 where the first is larger than the second."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 24, (n, 7), generator=draws)
    lengths = torch.randint(2, 8, (n, 1), generator=draws)
    return TensorSamples(tokens.where(torch.arange(7) < lengths, -1), (tokens[:, 0] > tokens[:, 1]).long())


def token_data() -> FederatedDataModule:
    return FederatedDataModule.from_datasets(token_samples(40, 0), token_samples(12, 1), partition=IID(num_clients=CLIENTS))


def federation(model: dict[str, Any], rule: Any = None, **given: Any) -> Federation:
    torch.manual_seed(0)
    client = HuggingFaceClassifier(model=model, lora=LoRA(r=4, alpha=8), optimizer=sgd, **given)
    cohort = CohortSampler(clients_per_round=CLIENTS, malicious_fraction=0.0)
    return Federation(client, rule or FedAvg(), cohort=cohort, local=LocalTraining(epochs=STEPS, batch_size=64))


def trained(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]


def by_hand(model: dict[str, Any], start: list[Tensor], data: FederatedDataModule) -> list[Tensor]:
    """Federated averaging in a loop, of a network that `get_peft_model` has adapted."""
    peft, transformers = library("peft"), library("transformers")
    settings = dict(model)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), num_labels=2, pad_token_id=0, **settings)
    torch.manual_seed(0)  # the base's seed
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    adapted = peft.get_peft_model(network, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(("classifier", "score")))
    weights = [tensor.clone() for tensor in start]
    own = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    total = int(data.sizes.sum())
    for _ in range(ROUNDS):
        mean = [torch.zeros_like(tensor) for tensor in weights]
        for client in range(CLIENTS):
            with torch.no_grad():
                for parameter, tensor in zip(own, weights, strict=True):
                    parameter.copy_(tensor)
            tokens, targets = data.client(client).batch(torch.arange(int(data.sizes[client])))
            optimizer = torch.optim.SGD(own, lr=RATE)
            for _ in range(STEPS):
                optimizer.zero_grad()
                output = adapted(input_ids=tokens.clamp(min=0), attention_mask=(tokens >= 0).long())
                F.cross_entropy(output.logits, targets).backward()
                optimizer.step()
            for sum_, parameter in zip(mean, own, strict=True):
                sum_ += parameter.detach() * (int(data.sizes[client]) / total)
        weights = mean
    return weights


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_rounds_are_those_of_a_loop_by_hand(kind):
    model = NETWORKS[kind]
    run, data = federation(model), token_data()
    client = run.client
    assert isinstance(client, HuggingFaceClassifier)
    start, base = [tensor.clone() for tensor in trained(client)], client.digest_of_base()
    assert all((tensor == 0).all() for name, tensor in client.named_parameters() if "lora_B" in name)
    trainer = tiny_trainer(ROUNDS)
    trainer.fit(run, data)
    expected = by_hand(model, start, data)
    for found, wanted, before in zip(trained(client), expected, start, strict=True):
        assert (found - wanted).abs().max() <= 1e-6
        assert (wanted - before).abs().max() > 1e-5
    assert torch.equal(client.digest_of_base(), base)


def test_what_is_trained_are_adapters_and_head():
    module = HuggingFaceClassifier(model=BERT, num_classes=3, lora=LoRA(r=2))
    width = BERT["hidden_size"]
    assert sum(tensor.numel() for tensor in trained(module)) == 2 * 2 * 2 * (width + width) + 3 * (width + 1)
    whole = HuggingFaceClassifier(model=BERT, lora=None)
    assert len(trained(whole)) == len(list(whole.parameters()))
    assert not whole.base_names


def test_the_base_has_a_seed_of_its_own_and_adapters_that_of_the_run():
    def made(seed: int, base_seed: int = 0) -> HuggingFaceClassifier:
        torch.manual_seed(seed)
        return HuggingFaceClassifier(model=BERT, base_seed=base_seed)

    def adapter(module: HuggingFaceClassifier) -> Tensor:
        return next(parameter.detach() for name, parameter in module.named_parameters() if "lora_A" in name)

    assert torch.equal(made(0).base_sha256, made(1).base_sha256)
    assert not torch.equal(adapter(made(0)), adapter(made(1)))
    assert torch.equal(adapter(made(0)), adapter(made(0, base_seed=1)))
    assert not torch.equal(made(0).base_sha256, made(0, base_seed=1).base_sha256)


def test_adapters_of_another_scale_are_other_weights():
    trained = HuggingFaceClassifier(model=BERT, lora=LoRA(r=2, alpha=4)).state_dict()
    HuggingFaceClassifier(model=BERT, lora=LoRA(r=2, alpha=4, dropout=0.5)).load_state_dict(trained)
    with pytest.raises(ConfigurationError, match=r"the same model, revision, base_seed, lora\.alpha and versions"):
        HuggingFaceClassifier(model=BERT, lora=LoRA(r=2, alpha=8)).load_state_dict(trained)


@pytest.mark.parametrize("model", [BERT, GPT2, DISTILBERT], ids=["bert", "gpt2", "distilbert"])
def test_what_stands_behind_the_end_does_not_matter(model):
    targets = ["q_lin"] if model == DISTILBERT else None
    module = HuggingFaceClassifier(model=model, lora=LoRA(targets=targets)).eval()
    alone, beside = torch.tensor([[5, 7, 2]]), torch.tensor([[5, 7, 2, -1, -1], [1, 2, 3, 4, 5]])
    assert torch.allclose(module(alone)[0], module(beside)[0], atol=1e-5)
    assert module(torch.full((2, 3), -1)).isfinite().all()


def test_pretrained_weights_come_from_a_folder(tmp_path):
    first = HuggingFaceClassifier(model=BERT, base_seed=3, lora=None)
    first.network.save_pretrained(tmp_path / "bert")  # pyrefly: ignore[not-callable]
    second = HuggingFaceClassifier(model=str(tmp_path / "bert"), lora=None)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {"model_type": "nonsense"}}, "there is no configuration of kind 'nonsense'"),
    ({"model": {"hidden_size": 3}}, r"gives settings without model_type \(hidden_size\)"),
    ({"model": {}}, r"gives settings without model_type \(none at all\)"),
    ({"model": {**BERT, "hiden_size": 3}}, "has the settings hiden_size, which BertConfig does not know"),
    ({"model": {**BERT, "hidden_size": 17}}, "no network of kind 'bert' can be made of these settings"),
    ({"model": {**BERT, "hidden_size": "wide"}}, "no configuration of kind 'bert' with these settings"),
    ({"model": BERT, "revision": "main"}, "revision is 'main', but model gives settings"),
    ({"model": "no/such/name"}, r"model 'no/such/name' cannot be had"),
    ({"model": BERT, "num_classes": 1}, "num_classes must be at least 2, got 1"),
    (
        {"model": BERT, "lora": LoRA(targets=["foo"])},
        r"lora\.targets is \['foo'\] .* name linear layers of the network, of query",
    ),
    (
        {"model": BERT, "lora": LoRA(targets=["query", "foo"])},
        r"lora\.targets is \['query', 'foo'\] \(.*no layer of the name foo\); name linear layers of the network, of query",
    ),
    (
        {"model": BERT, "lora": {"r": 8}},
        r"lora must be of type LoRA, such as LoRA\(r=8\), got \{'r': 8\}",
    ),
    ({"model": None}, "model must be a name, a folder or a dict of settings, got None"),
    ({"model": BERT, "num_classes": 2.5}, "num_classes must be a whole number, got 2.5"),
    ({"model": {**BERT, "num_labels": 3}}, "model has the setting num_labels; leave it out, as num_classes says it"),
    ({"model": DISTILBERT}, r"lora\.targets is null, and peft has no choice of its own for distilbert .* q_lin"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        HuggingFaceClassifier(**given)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3), r"reads token numbers \(texts, tokens\), got torch\.float32 of shape \(2, 3\)"),
        (torch.zeros(2, 40, dtype=torch.int64), "a text has 40 tokens, but BertForSequenceClassification reads 32 at most"),
        (torch.full((1, 3), 24), "a text has the token 24, but BertForSequenceClassification has a vocabulary of 24"),
    ],
)
def test_inputs_that_are_no_texts_of_the_network_are_refused(inputs, message):
    with pytest.raises(ConfigurationError, match=message):
        HuggingFaceClassifier(model=BERT)(inputs)


# ---- on ranks, and after a kill --------------------------------------------------------------------------------------


def ended(world: int = 1, folder: Path | None = None, kill: int | None = None, ckpt_path: Path | None = None) -> str:
    """The digest after three rounds under the invariant rule, with dropout everywhere."""
    run = federation(BERT, Invariant(tau=0.2, alpha=0.25))
    callbacks = [] if kill is None else [KillAt(kill), LastCheckpoint(every_n_rounds=1), RunRecord()]
    trainer = tiny_trainer(ROUNDS, callbacks=callbacks, devices=world, default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(run, token_data(), ckpt_path=ckpt_path)
    return weights_sha256(run)


def test_one_rank_and_two_and_a_resumed_run_end_with_the_same_bits(tmp_path):
    expected = ended()
    assert on_ranks(2, ended, 2) == [expected] * 2
    with pytest.raises(KilledError):
        ended(folder=tmp_path, kill=2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kept = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    assert kept == sum(tensor.numel() for tensor in trained(federation(BERT).client)) + 32  # and the base's digest
    assert ended(folder=tmp_path, ckpt_path=tmp_path / "last.ckpt") == expected


@pytest.mark.parametrize("targets", [[1], [], "query", 3, [None]])
def test_targets_are_names(targets):
    with pytest.raises(ConfigurationError, match=r"lora\.targets must be a list of one layer's name or more"):
        LoRA(targets=targets)
