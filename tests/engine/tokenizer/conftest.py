"""Tiny tokenizers of each kind, built in a moment, each in a folder as a model's would be."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = ["the quick brown fox jumps over the lazy dog", "hello world, how are you?", "naïve café über", "a b c d"] * 4
Build = Callable[..., Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A folder with the given files: text and bytes as they are, anything else as JSON."""

    def build(**files: Any) -> Path:
        path = tmp_path_factory.mktemp("model")
        for name, content in files.items():
            name = name.replace("__", ".")
            if isinstance(content, bytes):
                (path / name).write_bytes(content)
            else:
                text = content if isinstance(content, str) else json.dumps(content)
                (path / name).write_text(text, encoding="utf-8")
        return path

    return build


@pytest.fixture(scope="session")
def byte_level() -> str:
    """tokenizer.json as SmolLM2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "<a b>"])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def byte_fallback() -> str:
    """tokenizer.json as Llama 2 has it: bytes for what the vocabulary lacks, and a space before the text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehlo", "he", "ll", "▁a"]
    merges = [("h", "e"), ("l", "l"), ("▁", "a")]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., bytes]:
    """The bytes of a tokenizer.model; options are the trainer's."""

    def train(**options: Any) -> bytes:
        buffer = io.BytesIO()
        defaults = {
            "vocab_size": 310,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "user_defined_symbols": ["<n>", "<turn_start>"],
            "control_symbols": ["<turn_end>"],
            "num_threads": 1,
            "minloglevel": 2,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_writer=buffer, **(defaults | options)
        )
        return buffer.getvalue()

    return train


@pytest.fixture(scope="session")
def sentencepiece_bytes(train_sentencepiece: Callable[..., bytes]) -> bytes:
    return train_sentencepiece()
