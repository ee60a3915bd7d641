"""Scores are attention weights, of the right queries over the right rows, put at the right tokens."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.cache import Slot
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.importance import Aggregated, LastRow, Watch, attention, score
from russet.engine.rows import PlainRows
from russet.models.decoder import Decoder
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
HEADS, GROUPS, DIM = 4, 2, 8


def slot_at(positions: np.ndarray, window: int | None = None) -> tuple[Slot, np.ndarray]:
    """A slot with random keys at these positions, and the keys [groups, n, dim]."""
    keys = np.random.default_rng(1).normal(size=(GROUPS, len(positions), DIM)).astype(np.float32)
    slot = Slot(PlainRows(1, GROUPS, DIM, mx.float32), window)
    slot.append(mx.array(keys)[None], mx.array(keys)[None], positions)
    return slot, keys


def naive(queries: np.ndarray, keys: np.ndarray, rows: np.ndarray, end: int, window: int | None) -> np.ndarray:
    heads, count, dim = queries.shape
    weights = np.zeros((heads, count, keys.shape[1]))
    for head in range(heads):
        for i in range(count):
            position = end - count + i
            seen = (rows <= position) & (position - rows < (window or np.inf))
            products = np.exp(keys[head // (heads // len(keys))][seen] @ queries[head, i] * dim**-0.5)
            weights[head, i, seen] = products / products.sum()
    return weights


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("positions", [np.arange(20.0), np.array([0.0, 3, 4, 9, 18, 19, 7, 5])])
def test_attention_is_the_softmax_over_what_each_query_sees(positions: np.ndarray, window: int | None) -> None:
    slot, keys = slot_at(positions, window)
    queries = np.random.default_rng(2).normal(size=(HEADS, 3, DIM)).astype(np.float32)
    weights = attention(mx.array(queries)[None], slot, DIM**-0.5, 20, window)
    assert np.allclose(weights, naive(queries, keys, positions, 20, window), atol=1e-6)


def test_scorers_reduce_heads_and_queries_as_named() -> None:
    slot, keys = slot_at(np.arange(20.0))
    queries = np.random.default_rng(2).normal(size=(HEADS, 3, DIM)).astype(np.float32)
    weights = naive(queries, keys, np.arange(20.0), 20, None)
    given = (mx.array(queries)[None], slot, DIM**-0.5, 20, None)
    assert np.allclose(Aggregated(3, heads="mean").scores(*given), weights.mean(axis=(0, 1)), atol=1e-6)
    assert np.allclose(Aggregated(3, heads="max").scores(*given), weights.mean(axis=1).max(axis=0), atol=1e-6)
    last = (mx.array(queries[:, -1:])[None], slot, DIM**-0.5, 20)
    assert np.allclose(LastRow().scores(*last, None), weights[:, -1].mean(axis=0), atol=1e-6)
    near = naive(queries[:, -1:], keys, np.arange(20.0), 20, 5)
    assert np.allclose(LastRow().scores(*last, 5), near.mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("chunks", [[9], [4, 5], [1, 1, 7], [8, 1]])
def test_watch_keeps_the_last_queries_over_chunks(chunks: list[int]) -> None:
    queries = mx.random.normal((1, HEADS, 9, DIM))
    watch = Watch([2], 3)
    for chunk in np.split(np.arange(9), np.cumsum(chunks)[:-1]):
        watch.queries(2, queries[:, :, chunk[0] : chunk[-1] + 1], None)  # type: ignore[arg-type]
    assert np.array_equal(watch.seen[2], queries[:, :, -3:])


def test_watch_leaves_other_layers_alone() -> None:
    watch = Watch([2], 3)
    watch.queries(1, mx.zeros((1, HEADS, 4, DIM)), None)  # type: ignore[arg-type]
    assert not watch.seen


@pytest.fixture(scope="module")
def llama() -> Decoder:
    return load_decoder(GOLDEN / "llama")


def test_score_is_the_maximum_over_layers_pooled(llama: Decoder) -> None:
    cache, watch = llama.new_cache(), Watch([0, 1], 2)
    tokens = mx.array([[int(t) for t in np.random.default_rng(0).integers(0, llama.config.vocab_size, 30)]])
    llama.run(llama.embed(tokens), range(2), 0, cache, probe=watch)
    positions = np.arange(30.0)
    scorer = Aggregated(2, depth=2, heads="mean", pool=1)
    each = [scorer.scores(watch.seen[i], cache.slot(i), llama.blocks[i].scale, 30, None) for i in range(2)]
    best = np.maximum(np.array(each[0]), np.array(each[1]))
    assert np.allclose(score(scorer, 2, watch, 30, positions, llama, cache), best)
    some = np.array([3.0, 8, 29])
    assert np.allclose(score(scorer, 2, watch, 30, some, llama, cache), best[[3, 8, 29]])
    wide = Aggregated(2, depth=2, heads="mean", pool=3)
    assert score(wide, 2, watch, 30, positions, llama, cache)[10] == pytest.approx(best[9:12].mean())


def test_a_token_without_a_row_scores_nothing(llama: Decoder) -> None:
    cache, watch = llama.new_cache(), Watch([0], 1)
    held = np.array([0.0, 7, 9, 4])
    llama.run(llama.embed(mx.array([[5, 6, 7, 8]])), range(1), held, cache, probe=watch)
    scores = score(LastRow(), 1, watch, 5, np.array([0.0, 2, 4, 7, 9]), llama, cache)
    assert scores[1] == 0
    assert scores[0] > 0 and scores[2] > 0
    assert scores.sum() == pytest.approx(1)


def test_layers_that_see_the_whole_prompt_are_preferred() -> None:
    gemma, mistral = (load_decoder(GOLDEN / name).config for name in ("gemma3", "mistral"))
    assert [layer.window for layer in gemma.layers] == [8, 8, None, 8]
    assert LastRow().layers(3, gemma) == Aggregated(depth=4).layers(4, gemma) == (2,)
    assert Aggregated(depth=2).layers(2, gemma) == (0, 1)
    assert Aggregated(depth=2).layers(3, mistral) == (1, 2)


@pytest.mark.parametrize("arguments", [{"queries": 0}, {"pool": 0}, {"depth": 0}, {"heads": "median"}])
def test_impossible_scorers_are_refused(arguments: dict) -> None:
    with pytest.raises(InvalidOptionError, match="does not exist"):
        Aggregated(**arguments)
