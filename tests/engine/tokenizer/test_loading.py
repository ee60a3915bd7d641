"""Which files make a tokenizer, which ids end a reply, and what is said of damaged files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from russet.engine.errors import TokenizerError
from russet.engine.tokenizer import load_tokenizer


def test_tokenizer_json_comes_before_the_model_file(folder, byte_level, sentencepiece_bytes):
    tokenizer = load_tokenizer(folder(tokenizer__json=byte_level, tokenizer__model=sentencepiece_bytes))
    assert tokenizer.token_id("<|im_start|>") is not None


@pytest.mark.parametrize("eos", ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False}])
@pytest.mark.parametrize(("generation", "more"), [([7, 8], {7, 8}), (9, {9}), (None, set())])
def test_ids_that_end_a_reply_are_gathered_from_every_file(folder, byte_level, eos, generation, more):
    path = folder(
        tokenizer__json=byte_level,
        tokenizer_config__json={"eos_token": eos},
        generation_config__json={"eos_token_id": generation},
    )
    tokenizer = load_tokenizer(path, [5])
    assert tokenizer.eos_ids == {5, tokenizer.token_id("<|im_end|>"), *more}


def test_older_folders_name_their_tokens_in_special_tokens_map(folder, byte_level):
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_end|>"}
    config = {"bos_token": "<|im_start|>", "eos_token": None}
    path = folder(tokenizer__json=byte_level, special_tokens_map__json=names, tokenizer_config__json=config)
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_ids == {tokenizer.token_id("<|im_end|>")}
    assert tokenizer.bos_id == tokenizer.token_id("<|im_start|>")


def test_a_tokenizer_without_an_end_is_reported(folder, byte_level, caplog):
    with caplog.at_level(logging.WARNING, "russet"):
        load_tokenizer(folder(tokenizer__json=byte_level))
    assert "no token that ends a reply" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "looked for tokenizer.json and tokenizer.model"),
        ({"tokenizer__json": ""}, "not a tokenizer that the `tokenizers` library can read"),
        ({"tokenizer__json": '{"version": "1.0", "model": {"type": "BP'}, "can read"),
        ({"tokenizer__json": {"version": "1.0", "model": {"type": "Oracle"}}}, "can read"),
        ({"tokenizer__json": b"\xff\xfe\x00"}, "can read"),
        ({"tokenizer__model": b""}, "not a SentencePiece model"),
        ({"tokenizer__model": b"garbage" * 50}, "not a SentencePiece model"),
        ({"tokenizer__model": "IQ== 0\nIg== 1\n"}, "not a SentencePiece model"),
    ],
)
def test_missing_and_damaged_files(folder, files, message):
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder(**files))


def test_a_model_file_that_cannot_be_read(folder, sentencepiece_bytes, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    path = folder(tokenizer__model=sentencepiece_bytes)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(TokenizerError, match=r"tokenizer.model cannot be read \(Permission denied\)"):
        load_tokenizer(path)


def test_a_model_file_cut_short(folder, sentencepiece_bytes):
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer(folder(tokenizer__model=sentencepiece_bytes[: len(sentencepiece_bytes) // 2]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": '{"eos_token": '}, r"tokenizer_config.json is not readable JSON"),
        ({"tokenizer_config__json": "[1]"}, "holds a JSON list where an object is expected"),
        ({"tokenizer_config__json": "[" * 100_000}, "not readable JSON"),
        ({"tokenizer_config__json": {"eos_token": 5}}, "eos_token = 5, where a token's text is expected"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "added tokens .* damaged"),
        ({"tokenizer_config__json": {"added_tokens_decoder": ["y"]}}, "added tokens .* damaged"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"3": {"content": ""}}}}, "an empty token"),
        ({"added_tokens__json": {"a": None}}, "added tokens .* damaged"),
        ({"generation_config__json": {"eos_token_id": "</s>"}}, "token ids are expected"),
    ],
)
def test_damaged_settings(folder, byte_level, files, message):
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(folder(tokenizer__json=byte_level, **files))
    assert str(raised.value).count(". ") == 0, "one sentence"
