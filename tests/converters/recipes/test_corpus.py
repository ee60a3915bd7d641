"""Shards: the order of windows, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from russet.converters.recipes.corpus import Corpus
from russet.engine.errors import TrainingDataError


def test_an_epoch_goes_through_every_window_once(data: Path, vocab_size: int) -> None:
    corpus = Corpus(data, 16, vocab_size)
    count = len(corpus.train)
    assert count == (700 - 1) // 16 + (401 - 1) // 16
    rows = [tuple(row) for step in range(count // 4) for row in np.array(corpus.batch(step, 4, seed=3).tokens)]
    windows = [tuple(row) for row in np.array(corpus.train.take(np.arange(count)).tokens)]
    assert len(set(rows)) == len(rows) and set(rows) <= set(windows)


def test_the_seed_and_the_step_decide_a_batch(data: Path, vocab_size: int) -> None:
    corpus = Corpus(data, 16, vocab_size)
    again = Corpus(data, 16, vocab_size)
    across = 10_000 // 4
    assert np.array_equal(corpus.batch(across, 4, 1).tokens, again.batch(across, 4, 1).tokens)
    assert not np.array_equal(corpus.batch(0, 4, 1).tokens, corpus.batch(0, 4, 2).tokens)
    batch = corpus.batch(0, 4, 1)
    assert np.array_equal(batch.tokens[:, 1:], batch.labels[:, :-1])


@pytest.mark.parametrize("place", [0, 100, -1])
def test_other_ids_are_other_text(data: Path, vocab_size: int, place: int) -> None:
    before = Corpus(data, 16, vocab_size).fingerprint()
    assert Corpus(data, 16, vocab_size).fingerprint() == before
    ids = np.fromfile(data / "train_01.bin", dtype="<u2")
    ids[place] ^= 1
    ids.tofile(data / "train_01.bin")
    assert Corpus(data, 16, vocab_size).fingerprint() != before


def test_a_change_in_the_middle_of_a_large_shard_is_another_text(data: Path) -> None:
    shard = data / "train_01.bin"
    ids = np.zeros(1 << 20, dtype="<u2")
    ids.tofile(shard)
    before = Corpus(data, 16, 1000).fingerprint()
    ids[len(ids) // 2] = 1
    ids.tofile(shard)
    assert Corpus(data, 16, 1000).fingerprint() != before


def test_no_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"neither token ids \(\*\.bin"):
        Corpus(tmp_path, 16, 100)


def test_a_cut_shard_is_refused(data: Path, vocab_size: int) -> None:
    shard = data / "train_01.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TrainingDataError, match=r"train_01.bin has 801 bytes.*cut"):
        Corpus(data, 16, vocab_size)
    shard.write_bytes(b"")
    with pytest.raises(TrainingDataError, match="0 bytes"):
        Corpus(data, 16, vocab_size)


def test_ids_that_the_model_has_not_are_refused(data: Path) -> None:
    with pytest.raises(TrainingDataError, match="the model has 5 tokens"):
        Corpus(data, 16, 5)


def test_too_little_text_is_refused(data: Path, vocab_size: int) -> None:
    with pytest.raises(TrainingDataError, match="shorter than a window of 5001"):
        Corpus(data, 5000, vocab_size)


def test_text_of_another_tokenizer_is_refused(data: Path, vocab_size: int, source_folder: Path) -> None:
    tokenizer = source_folder / "tokenizer.json"
    described = {"tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}
    (data / "corpus.json").write_text(json.dumps(described))
    Corpus(data, 16, vocab_size, tokenizer)
    (data / "corpus.json").write_text(json.dumps({"tokenizer_sha256": "0" * 64}))
    with pytest.raises(TrainingDataError, match="another tokenizer"):
        Corpus(data, 16, vocab_size, tokenizer)
    (data / "corpus.json").write_text("[")
    with pytest.raises(TrainingDataError, match="not a JSON object"):
        Corpus(data, 16, vocab_size, tokenizer)
    (data / "corpus.json").write_text(json.dumps({"dtype": "f4"}))
    with pytest.raises(TrainingDataError, match="dtype 'f4'"):
        Corpus(data, 16, vocab_size, tokenizer)


def test_large_vocabularies_have_wider_ids(data: Path) -> None:
    for path in data.glob("*.bin"):
        (np.fromfile(path, "<u2").astype("<u4") + 70_000).tofile(path)
    (data / "corpus.json").write_text(json.dumps({"dtype": "<u4"}))
    assert np.array(Corpus(data, 16, 100_000).batch(0, 2, 0).tokens).min() >= 70_000
