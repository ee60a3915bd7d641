"""The default model's greedy tokens equal mlx-lm's, as tests/parity/smollm2.py put them down; skipped where not cached.

One pass over a prompt and its expected reply shows at every position what greedy decoding would choose there: what is
equal in all of them is equal token by token, at the speed of prefill. The start of one is decoded outright.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.paths import models_dir
from russet.models.decoder import Decoder

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "smollm2_greedy.json").read_text())
PROMPTS = (GOLDEN / "prompts.txt").read_text(encoding="utf-8").splitlines()
FOLDER = models_dir() / "smollm2-135m"  # the user's cache: other tests of this room get one of their own


@pytest.fixture(scope="module")
def model() -> russet.Model:
    if not FOLDER.is_dir():
        pytest.skip(f"smollm2-135m is not in {models_dir()}; `make chat` puts it there")
    source = json.loads((FOLDER / "source.json").read_text())["source"]
    if source != EXPECTED["source"]:
        pytest.skip(f"smollm2-135m came from {source}, and the expected tokens from {EXPECTED['source']}")
    return russet.load(FOLDER, dtype="float32")


def test_the_weights_are_those_of_the_golden(model: russet.Model) -> None:
    digest = hashlib.sha256()
    for shard in sorted(model.path.glob("*.safetensors")):
        digest.update(shard.read_bytes())
    assert digest.hexdigest() == EXPECTED["weights_sha256"], "write smollm2_greedy.json anew: conversion has changed"


def test_prompts_become_the_same_tokens(model: russet.Model) -> None:
    assert [model.encode(text) for text in PROMPTS] == [reply["prompt_tokens"] for reply in EXPECTED["replies"]]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_each_expected_token_is_the_likeliest(model: russet.Model, index: int) -> None:
    reply = EXPECTED["replies"][index]
    rows = [*reply["prompt_tokens"], *reply["tokens"][:-1]]
    assert isinstance(model.decoder, Decoder)
    logits = model.decoder.extend(mx.array([rows]), model.decoder.new_cache(), logits=len(reply["tokens"]))
    assert logits is not None
    assert np.array(logits[0]).argmax(axis=-1).tolist() == reply["tokens"]


def test_a_generated_reply_equals_mlx_lm(model: russet.Model) -> None:
    """Through the Python API, which ends at the end of the turn where the golden goes on."""
    expected = EXPECTED["replies"][0]["tokens"][:40]
    reply = model.generate(PROMPTS[0], max_tokens=len(expected))
    assert reply.tokens == expected[: len(reply.tokens)]
    assert len(reply.tokens) == len(expected) or expected[len(reply.tokens)] in model.tokenizer.eos_ids
