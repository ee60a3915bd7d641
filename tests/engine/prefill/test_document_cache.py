"""Documents on disk: the same reply from them, nothing computed twice, and no harm from damage, size or a full disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.bounded_folder import LEFTOVER_NS, evict
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.base import Prefilled, PromptTokens, Segments
from russet.engine.prefill.document_cache import DocumentCache
from russet.engine.prefill.superposition import Superposition
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(GOLDEN / "llama", "float32")


def prompt_of(lengths: tuple[int, ...] = (9, 20, 14), preamble: int = 5, seed: int = 0) -> PromptTokens:
    random = np.random.default_rng(seed)
    first, *documents, query, task = (tuple(random.integers(0, 64, n).tolist()) for n in (preamble, *lengths, 4, 3))
    flat = [*first, *(token for document in documents for token in document), *query, *task]
    return PromptTokens(flat, 1, Segments(first, tuple(documents), query, task))


def run(decoder: Decoder, folder: Path | None, prompt: PromptTokens, keep: int = 2, **settings) -> Prefilled:
    """Each with a cache object of its own, as another process would have it."""
    documents = DocumentCache(folder) if folder else None
    return Superposition(keep, documents=documents, **settings)(decoder, prompt, decoder.new_cache())


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_rows_give_the_reply_that_computed_ones_give_at_equal_spacing(family: str, tmp_path: Path) -> None:
    decoder = load_decoder(GOLDEN / family, "float32")
    prompt = prompt_of()
    computed = run(decoder, None, prompt, positions="left")
    stored, again = (run(decoder, tmp_path, prompt, positions="left") for _ in range(2))
    assert float(mx.abs(stored.logits - computed.logits).max()) < 1e-4 * float(mx.abs(computed.logits).max())
    assert mx.array_equal(stored.logits, again.logits)


def test_a_second_run_computes_only_queries_and_task(decoder: Decoder, tmp_path: Path) -> None:
    prompt = prompt_of()
    first = run(decoder, tmp_path, prompt)
    second = run(decoder, tmp_path, prompt)
    assert first.work.layer_tokens[0] == 5 + 43 + 3 * 4 + 3
    assert second.work.layer_tokens[0] == 3 * 4 + 3
    assert mx.array_equal(first.logits, second.logits)
    assert len(files(tmp_path)) == 4  # preamble and documents


def test_long_documents_in_pieces_are_stored_whole(decoder: Decoder, tmp_path: Path) -> None:
    prompt = prompt_of()
    pieces = run(decoder, tmp_path, prompt, chunk=6)
    whole = run(decoder, None, prompt, positions="left")
    again = run(decoder, tmp_path, prompt, positions="left")
    assert pieces.work.layer_tokens[0] > again.work.layer_tokens[0]
    assert float(mx.abs(again.logits - whole.logits).max()) < 1e-4 * float(mx.abs(whole.logits).max())


def test_at_other_spacing_only_the_first_layer_is_exact(decoder: Decoder, tmp_path: Path) -> None:
    caches = [decoder.new_cache(), decoder.new_cache()]
    for documents, cache in zip((None, DocumentCache(tmp_path)), caches, strict=True):
        Superposition(3, documents=documents)(decoder, prompt_of((9, 20)), cache)
    errors = []
    for layer in caches[0].slots:
        computed, stored = (mx.concatenate(list(cache.slot(layer).rows.read(0))) for cache in caches)
        errors.append(float(mx.abs(computed - stored).max()))
    assert errors[0] < 1e-5 and min(errors[1:]) > 1e-3


def test_another_set_of_documents_uses_what_is_there(decoder: Decoder, tmp_path: Path) -> None:
    parts = prompt_of().segments
    assert parts is not None
    run(decoder, tmp_path, prompt_of())
    fewer = Segments(parts.preamble, parts.documents[1:], parts.query, parts.task)
    second = run(decoder, tmp_path, PromptTokens([1], 1, fewer), keep=1)
    assert second.work.layer_tokens[0] == 2 * 4 + 3


@pytest.mark.parametrize("change", ["preamble", "split", "model", "dtype", "layers"])
def test_what_rows_depend_on_names_them(
    change: str, decoder: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = prompt_of()
    run(decoder, tmp_path, prompt)
    other = decoder
    if change == "preamble":
        parts = prompt.segments
        assert parts is not None
        prompt = PromptTokens([1], 1, Segments((1, *parts.preamble[1:]), parts.documents, parts.query, parts.task))
    elif change == "split":
        parts = prompt.segments
        assert parts is not None
        (token, *rest), *others = parts.documents
        documents = (tuple(rest), *others)
        prompt = PromptTokens([1], 1, Segments((*parts.preamble, token), documents, parts.query, parts.task))
    elif change == "model":
        other = load_decoder(GOLDEN / "llama-tied", "float32")
    elif change == "dtype":
        other = load_decoder(GOLDEN / "llama", "float16")
    else:
        other = layer_pruned(decoder, (0, 1))
        with pytest.raises(InvalidOptionError, match="as it was loaded from a folder"):
            run(other, tmp_path, prompt)
        return
    assert run(other, tmp_path, prompt).work.layer_tokens[0] == 5 + 43 + 3 * 4 + 3
    assert len(files(tmp_path)) == 8 and not caplog.records


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def garble(path: Path) -> None:
    path.write_bytes(b"no rows" * 40)


def exchange(path: Path) -> None:
    mx.save_safetensors(str(path), {"2x16": mx.zeros((1,))}, {"log_probability": "-1.0"})


def forget(path: Path) -> None:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, garble, exchange, forget, flip])
def test_a_damaged_file_costs_a_warning_and_its_rows(
    harm, decoder: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(decoder, tmp_path, prompt_of())
    for path in files(tmp_path):
        harm(path)
    with caplog.at_level(logging.WARNING, "russet"):
        mended = run(decoder, tmp_path, prompt_of())
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "A damaged document in the cache is computed anew"
    ]
    assert mx.array_equal(mended.logits, expected.logits)
    assert run(decoder, tmp_path, prompt_of()).work.layer_tokens[0] == 3 * 4 + 3


def test_documents_used_last_stay_in_memory(decoder: Decoder, tmp_path: Path) -> None:
    documents = DocumentCache(tmp_path)
    strategy = Superposition(2, documents=documents)
    expected = strategy(decoder, prompt_of(), decoder.new_cache()).logits
    for path in files(tmp_path):
        path.unlink()
    again = strategy(decoder, prompt_of(), decoder.new_cache())
    assert mx.array_equal(again.logits, expected) and again.work.layer_tokens[0] == 3 * 4 + 3


def test_memory_holds_no_more_than_it_may(decoder: Decoder, tmp_path: Path) -> None:
    parts = prompt_of().segments
    assert parts is not None
    run(decoder, tmp_path, prompt_of())
    sizes = [DocumentCache(tmp_path).read(decoder, parts.preamble, text).nbytes for text in parts.documents]
    documents = DocumentCache(tmp_path, memory_bytes=sizes[0] + sizes[2])
    for text in (*parts.documents, parts.documents[0]):
        documents.read(decoder, parts.preamble, text)
    for path in files(tmp_path):
        path.unlink()
    found = [documents.read(decoder, parts.preamble, text) is not None for text in parts.documents]
    assert found == [True, False, True]
    with pytest.raises(InvalidOptionError, match="memory_bytes is -1"):
        DocumentCache(tmp_path, memory_bytes=-1)


def test_what_was_used_longest_ago_goes_first(decoder: Decoder, tmp_path: Path) -> None:
    run(decoder, tmp_path, prompt_of(seed=1))
    old = files(tmp_path)
    size = sum(path.stat().st_size for path in old)
    for path in old:
        os.utime(path, ns=(1, 1))
    documents = DocumentCache(tmp_path, max_bytes=size)
    Superposition(2, documents=documents)(decoder, prompt_of(seed=2), decoder.new_cache())
    assert sum(path.stat().st_size for path in files(tmp_path)) <= size
    assert not set(old) & set(files(tmp_path))


def test_a_hit_counts_as_use(decoder: Decoder, tmp_path: Path) -> None:
    run(decoder, tmp_path, prompt_of())
    for path in files(tmp_path):
        os.utime(path, ns=(1, 1))
    run(decoder, tmp_path, prompt_of())
    assert all(path.stat().st_mtime_ns > 1 for path in files(tmp_path))


def test_what_a_dead_process_left_is_swept_away(tmp_path: Path) -> None:
    left, writing, kept = (tmp_path / name for name in (".a.safetensors", ".b.safetensors", "c.safetensors"))
    for path in (left, writing, kept):
        path.write_bytes(b"12345678")
    os.utime(left, ns=(1, left.stat().st_mtime_ns - LEFTOVER_NS - 10**9))
    evict(tmp_path, ".safetensors", 8)
    assert [path.exists() for path in (left, writing, kept)] == [False, True, True]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "file"
    file.write_text("")
    yield file / "folder"


def test_a_folder_that_cannot_be_written_costs_a_warning(
    decoder: Decoder, locked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "russet"):
        reply = run(decoder, locked, prompt_of())
    assert [record.message.split(":")[0] for record in caplog.records] == ["Documents are not kept"]
    assert mx.array_equal(reply.logits, run(decoder, tmp_path / "good", prompt_of()).logits)


def test_documents_can_be_stored_ahead_of_the_question(tiny_model: russet.Model, tmp_path: Path) -> None:
    prompt = russet.Prompt("Read.", ["One text.", "Another text."], "Which?")  # type: ignore[arg-type]
    strategy = russet.Superposition(1, documents=russet.DocumentCache(tmp_path))
    assert strategy.precompute(tiny_model, prompt) == 3
    assert strategy.precompute(tiny_model, prompt) == 0
    parts = tiny_model.prepare(prompt).segments
    assert parts is not None
    reply = tiny_model.generate(prompt, prefill=strategy, max_tokens=1)
    assert reply.layer_tokens[0] == 2 * len(parts.query) + len(parts.task)
    with pytest.raises(InvalidOptionError, match="without a document cache"):
        russet.Superposition(1).precompute(tiny_model, prompt)


def test_a_size_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="max_bytes is 0"):
        DocumentCache(tmp_path, max_bytes=0)
