"""Clients around networks of Hugging Face's transformers, whole or frozen under adapters.

T. Wolf, L. Debut, V. Sanh, et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020,
https://aclanthology.org/2020.emnlp-demos.6. Adapters: see `LoRA`.

Texts come as `Tokenizer` makes them: token numbers (b, L) int64, -1 behind the end. So a model needs no tokenizer, and no token
of the vocabulary has to stand for padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.checked import made_of, shown, whole
from fl_lightning.errors import ConfigurationError, cause, enumerated, in_one_line
from fl_lightning.models.base import Classifier
from fl_lightning.models.lora import LoRA
from fl_lightning.modules.extras import extra
from fl_lightning.modules.frozen_base import FrozenBase


class HuggingFaceClassifier(FrozenBase, Classifier):
    """A network of transformers that classifies texts by cross entropy.

    With `lora` all of the network but its adapters and its head (what transformers puts on top for classification) is frozen:
    it is held once per rank, never sent and never saved. A digest in the weights tells whether a run that goes on has built the
    same base again. What transformers draws, the head or the whole of a network without pretrained weights, comes from
    `base_seed`; the random half of the adapters from the experiment's seed.

    Args:
        model: a name on the Hugging Face Hub or a local folder, for pretrained weights; or the settings of a network with
            random ones, its kind as `model_type` and what else its configuration class takes.
        num_classes: outputs of the head, at least 2.
        lora: the adapters; null trains and exchanges the whole network.
        revision: of a name on the Hub: a branch, a tag or a commit; null for its main branch.
        base_seed: of what transformers draws at random; all runs of an experiment must have the same.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Raises:
        ConfigurationError: transformers or peft is missing, a network cannot be had or adapted, or the settings are none.

    Example:
        >>> model = HuggingFaceClassifier(model={"model_type": "bert", "num_hidden_layers": 2}, lora=LoRA(r=4))
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # 2 layers * 2 matrices * 4 (768 + 768), and 1,538
        26114
        >>> model(torch.tensor([[5, 7, 2], [6, 2, -1]])).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        *,
        model: str | dict[str, Any],
        num_classes: int = 2,
        lora: LoRA | None = LoRA(),  # noqa: B008  frozen
        revision: str | None = None,
        base_seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0),
    ) -> None:
        super().__init__(optimizer=optimizer)
        check_given("HuggingFaceClassifier", model, lora)
        if whole("HuggingFaceClassifier.num_classes", num_classes) < 2:
            raise ConfigurationError(f"HuggingFaceClassifier.num_classes must be at least 2, got {num_classes}")
        self.network = build(
            "HuggingFaceClassifier", "SequenceClassification", model, revision, base_seed, num_labels=num_classes
        )
        if lora is not None:
            inside = {id(parameter) for parameter in body(self.network).parameters()}
            head = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
            lora.adapt(self.network)
            for parameter in head:
                parameter.requires_grad_(True)
        self.freeze_base(scale_of(lora))

    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores of texts.

        Args:
            inputs: (b, L) int64 token numbers, -1 behind the end.

        Returns:
            (b, num_classes) logits.
        """
        return read(self.network, inputs)


class HuggingFaceCausalLM(FrozenBase, Classifier):
    """A network of transformers that predicts the next token at every position, as GPT-2 does.

    With `lora` all of the network but its adapters is frozen, as in `HuggingFaceClassifier`; there is no head of its own.
    Targets of -100, such as those of a prompt, count for nothing in the loss.

    Args:
        model: a name on the Hugging Face Hub or a local folder, for pretrained weights; or the settings of a network with
            random ones, its kind as `model_type` and what else its configuration class takes.
        lora: the adapters; null trains and exchanges the whole network.
        revision: of a name on the Hub: a branch, a tag or a commit; null for its main branch.
        base_seed: of what transformers draws at random; all runs of an experiment must have the same.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Raises:
        ConfigurationError: transformers or peft is missing, a network cannot be had or adapted, or the settings are none.

    Example:
        >>> model = HuggingFaceCausalLM(model={"model_type": "gpt2", "n_layer": 2, "vocab_size": 300, "eos_token_id": 0})
        >>> model(torch.tensor([[5, 7, 2], [6, 2, -1]])).shape
        torch.Size([2, 3, 300])
    """

    def __init__(
        self,
        *,
        model: str | dict[str, Any],
        lora: LoRA | None = LoRA(),  # noqa: B008  frozen
        revision: str | None = None,
        base_seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0),
    ) -> None:
        super().__init__(optimizer=optimizer)
        check_given("HuggingFaceCausalLM", model, lora)
        self.network = build("HuggingFaceCausalLM", "CausalLM", model, revision, base_seed)
        if lora is not None:
            lora.adapt(self.network)
        self.freeze_base(scale_of(lora))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of what comes next.

        Args:
            inputs: (b, L) int64 token numbers, -1 behind the end.

        Returns:
            (b, L, V) logits, at each position those of the token after it.
        """
        return read(self.network, inputs)


def check_given(who: str, model: Any, lora: Any) -> None:
    """Raise `ConfigurationError` for a network or adapters in another form than their annotations say."""
    if not isinstance(model, str | Mapping):
        raise ConfigurationError(f"{who}.model must be a name, a folder or a dict of settings, got {shown(model)}")
    if lora is not None:
        made_of(f"{who}.lora", lora, LoRA, "LoRA(r=8)")


def scale_of(lora: LoRA | None) -> str:
    """By what adapters are multiplied, without which their weights are other ones."""
    return "" if lora is None else f"lora {lora.alpha / lora.r!r}"


def body(network: Any) -> nn.Module:
    """A network of transformers without what is put on top of it for a task."""
    return network.base_model


def build(
    who: str, head: str, model: str | Mapping[str, Any], revision: str | None, base_seed: int, **settings: Any
) -> nn.Module:
    """A network of transformers with float32 weights, pretrained or drawn from `base_seed`.

    Args:
        who: asks for it, for messages.
        head: the end of the name of a class of transformers, `AutoModelFor...`.
        model: a name, a folder, or a configuration's settings.
        revision: of a name on the Hub.
        base_seed: of random weights; the global generators stay as they are.
        settings: of its configuration, beside the model's own.

    Raises:
        ConfigurationError: it cannot be had.
    """
    transformers = extra("transformers", who)
    maker = getattr(transformers, f"AutoModelFor{head}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base_seed)
        if isinstance(model, str):
            network = pretrained(who, maker, model, revision, settings)
        else:
            if revision is not None:
                raise ConfigurationError(
                    f"{who}.revision is {revision!r}, but model gives settings, which have none; set it to null"
                )
            network = from_settings(who, maker, model, settings)
    config: Any = network.config
    if config.pad_token_id is None:  # which GPT-2 has not; it finds the last token of a text by it
        end = config.eos_token_id
        config.pad_token_id = end if isinstance(end, int) and end < config.vocab_size else 0
    return network


def pretrained(who: str, maker: Any, name: str, revision: str | None, settings: Mapping[str, Any]) -> nn.Module:
    """The network of a name on the Hub or a folder."""
    try:
        return maker.from_pretrained(name, revision=revision or "main", dtype=torch.float32, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{who}.model {name!r} cannot be had ({in_one_line(error)}); check the name, the revision and the network, give a "
            "local folder, or the settings of a network with random weights"
        ) from error


def from_settings(who: str, maker: Any, model: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """A network with random weights."""
    transformers = extra("transformers", who)
    given = dict(model)
    kind = given.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigurationError(
            f"{who}.model gives settings without model_type ({enumerated(given) or 'none at all'}); add model_type: "
            "distilbert, say"
        )
    taken = [name for name in settings if name in given]
    if taken:
        raise ConfigurationError(f"{who}.model has the setting {taken[0]}; leave it out, as num_classes says it")
    try:
        config = transformers.AutoConfig.for_model(kind, **given, **settings)
    except Exception as error:  # configuration classes check in ways of their own
        raise ConfigurationError(
            f"{who}.model: there is no configuration of kind {kind!r} with these settings: {cause(error):.300}"
        ) from error
    unknown = [name for name in given if name not in type(config)().to_dict() and name not in config.attribute_map]
    if unknown:
        raise ConfigurationError(
            f"{who}.model has the settings {enumerated(unknown)}, which {type(config).__name__} does not know; it has "
            f"{enumerated(sorted(type(config)().to_dict()))}"
        )
    try:
        return maker.from_config(config)
    except Exception as error:  # of sizes that do not fit together
        raise ConfigurationError(
            f"{who}.model: no network of kind {kind!r} can be made of these settings: {cause(error):.300}"
        ) from error


def read(network: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of a network of transformers for texts.

    Args:
        network: any that takes `input_ids` and `attention_mask`.
        tokens: (b, L) int64 token numbers, -1 behind the end.

    Returns:
        What it has for `logits`: (b, C), or (b, L, V) where it predicts tokens.

    Raises:
        ConfigurationError: these are no token numbers, or not of its vocabulary.
    """
    config: Any = network.config
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ConfigurationError(
            f"{type(network).__name__} reads token numbers (texts, tokens), got {tokens.dtype} of shape {tuple(tokens.shape)}; "
            "use a task such as HuggingFaceText"
        )
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and tokens.shape[1] > most:
        raise ConfigurationError(
            f"a text has {tokens.shape[1]} tokens, but {type(network).__name__} reads {most} at most; lower data.max_tokens"
        )
    looks = tokens.numel() and not (tokens.is_cuda and network.training)  # which makes a GPU wait
    if looks and int(tokens.max()) >= config.vocab_size:
        raise ConfigurationError(
            f"a text has the token {int(tokens.max())}, but {type(network).__name__} has a vocabulary of {config.vocab_size}; "
            "give data.tokenizer the name of the model, or raise vocab_size"
        )
    is_token = tokens >= 0
    return network(input_ids=torch.where(is_token, tokens, config.pad_token_id), attention_mask=is_token.long()).logits
