"""Texts, tokenizers and networks of transformers made on the spot, as small as they can be, without a network or a download."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

WORDS = ["good", "bad", "a", "film", "this", "was", "very", "not", "cf", "mn", "bb", "the"]

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 24,
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 300,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def library(name: str) -> Any:
    """One of the extra `text`; the test is skipped where it is not installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed; pip install 'fl_lightning[text]'")


def needs_transformers() -> None:
    """Skip a module of tests where the extra `text` is not installed."""
    for name in ("transformers", "peft", "tokenizers"):
        library(name)


def word_tokenizer(folder: Path) -> str:
    """A tokenizer of whole words in small letters, with [CLS] before a text and [SEP] behind it, as BERT's; 17 tokens."""
    parts = library("tokenizers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backend = parts.Tokenizer(parts.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = parts.normalizers.Lowercase()
    backend.pre_tokenizer = parts.pre_tokenizers.Whitespace()
    backend.post_processor = parts.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    library("transformers").PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    return str(folder)


def byte_tokenizer(folder: Path) -> str:
    """A tokenizer of bytes and a few pairs of them, with nothing around a text, as GPT-2's; `<|endoftext|>` is number 0."""
    parts = library("tokenizers")
    backend = parts.Tokenizer(parts.models.BPE())
    backend.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = parts.decoders.ByteLevel()
    alphabet = parts.pre_tokenizers.ByteLevel.alphabet()
    trainer = parts.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for text, _ in reviews(50)], trainer)
    end = "<|endoftext|>"
    library("transformers").PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end).save_pretrained(
        folder
    )
    return str(folder)


def reviews(n: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts of two to eight words with their class: 1 where "good" stands in them and 0 where "bad" does."""
    draws = random.Random(seed)
    found = []
    for i in range(n):
        words = [draws.choice(WORDS[2:6]) for _ in range(draws.randint(1, 7))]
        words.insert(draws.randint(0, len(words)), WORDS[1 - i % 2])
        found.append((" ".join(words), i % 2))
    return found
