"""Scores are attention weights, of the right queries over the right rows, put at the right tokens."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from russet.engine.cache import Slot
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill import importance
from russet.engine.prefill.importance import Aggregated, LastRow, Watch, attention, pooled, score
from russet.engine.prefill.pruning import select
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


def test_lazyllms_score_goes_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every row is seen: a window needs a mask."""
    slot, keys = slot_at(np.arange(20))
    queries = mx.random.normal((1, HEADS, 1, DIM), key=mx.random.key(3))
    seen = []
    real = importance.last_row_importance
    monkeypatch.setattr(importance, "last_row_importance", lambda *given: seen.append(given) or real(*given))
    scores = LastRow().scores(queries, slot, DIM**-0.5, 20, None)
    np.testing.assert_allclose(
        np.array(scores)[0], naive(np.array(queries)[0], keys, np.arange(20), 20, None).mean((0, 1)), rtol=1e-5
    )
    assert len(seen) == 1 and seen[0][1].shape == (1, GROUPS, 20, DIM)
    LastRow().scores(queries, slot, DIM**-0.5, 20, 8)
    assert len(seen) == 1


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize(
    "positions", [np.arange(20.0), *map(np.array, ([0.0, 3, 4, 9, 18, 19, 7, 5], [0.0, 19, 3, 4, 18, 7]))]
)
def test_attention_is_the_softmax_over_what_each_query_sees(positions: np.ndarray, window: int | None) -> None:
    slot, keys = slot_at(positions, window)
    queries = np.random.default_rng(2).normal(size=(HEADS, 3, DIM)).astype(np.float32)
    weights = attention(mx.array(queries)[None], slot, DIM**-0.5, 20, window)
    assert np.allclose(weights, naive(queries, keys, positions, 20, window), atol=1e-6)


def test_scorers_reduce_heads_and_queries_as_named() -> None:
    slot, keys = slot_at(np.arange(20.0))
    queries = np.random.default_rng(2).normal(size=(HEADS, 3, DIM)).astype(np.float32)
    weights = naive(queries, keys, np.arange(20.0), 20, None)
    arguments = (mx.array(queries)[None], slot, DIM**-0.5, 20, None)
    for name, over_queries in (("mean", weights.mean(axis=1)), ("max", weights.max(axis=1))):
        mean = Aggregated(3, over_queries=name, over_heads="mean").scores(*arguments)
        each = Aggregated(3, over_queries=name, over_heads="max").scores(*arguments)
        assert np.allclose(mean, over_queries.mean(axis=0)[None], atol=1e-6)
        assert np.allclose(each, over_queries, atol=1e-6)
    last = (mx.array(queries[:, -1:])[None], slot, DIM**-0.5, 20)
    assert np.allclose(LastRow().scores(*last, None), weights[:, -1].mean(axis=0)[None], atol=1e-6)
    near = naive(queries[:, -1:], keys, np.arange(20.0), 20, 5)
    assert np.allclose(LastRow().scores(*last, 5), near.mean(axis=0), atol=1e-6)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.integers(1, 45))
def test_pooling_is_the_mean_of_neighbours(scores: list[float], width: int) -> None:
    values = np.array([scores, scores[::-1]])
    for of_map, means in zip(values, np.array(pooled(mx.array(values), width)), strict=True):
        for i, mean in enumerate(means):
            near = of_map[max(0, i - width // 2) : max(0, i - width // 2 + width)]
            assert mean == pytest.approx(near.mean(), abs=1e-5)


def test_pooling_keeps_a_needle_whole() -> None:
    """One digit of a code is attended to, and its neighbours, read only later, outrank scattered single tokens."""
    scores = np.zeros((1, 100), dtype=np.float32)
    scores[0, 50], scores[0, [10, 30, 70, 90]] = 1.0, 0.2
    whole = np.array(pooled(mx.array(scores), 5))[0]
    assert set(range(48, 53)) <= set(select(whole, 8, first=1, last=1).tolist())
    assert not set(range(48, 53)) <= set(select(scores[0], 8, first=1, last=1).tolist())


def test_one_head_that_finds_it_outranks_many_that_look_everywhere(llama: Decoder) -> None:
    """Pooling comes before the maximum over heads: one head's passage wins over single tokens of several heads."""

    class Fixed(LastRow):
        def scores(self, queries: mx.array, slot: Slot, scale: float, end: int, window: int | None) -> mx.array:
            maps = np.zeros((2, 30), dtype=np.float32)
            maps[0, [9, 10, 11]] = 0.2
            maps[0, 20], maps[1, 21] = 0.4, 0.4
            return mx.array(maps)

    cache, watch = llama.new_cache(), Watch([0], 1)
    llama.run(llama.embed(mx.zeros((1, 30), dtype=mx.int32)), range(1), 0, cache, probe=watch)
    found = np.array(score(Fixed(pool=3), 1, watch, 30, np.arange(30.0), llama, cache))
    assert found[10] == pytest.approx(0.2) and found[20] == found[21] == pytest.approx(0.4 / 3)


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
    scorer = Aggregated(2, depth=2, over_heads="mean", pool=1)
    each = [scorer.scores(watch.seen[i], cache.slot(i), llama.blocks[i].scale, 30, None) for i in range(2)]
    best = np.maximum(np.array(each[0]), np.array(each[1]))[0]
    assert np.allclose(score(scorer, 2, watch, 30, positions, llama, cache), best)
    some = np.array([3.0, 8, 29])
    assert np.allclose(score(scorer, 2, watch, 30, some, llama, cache), best[[3, 8, 29]])
    wide = Aggregated(2, depth=2, over_heads="mean", pool=3)
    assert np.array(score(wide, 2, watch, 30, positions, llama, cache))[10] == pytest.approx(
        max(np.array(scores)[0, 9:12].mean() for scores in each)
    )


def test_a_token_without_a_row_scores_nothing(llama: Decoder) -> None:
    cache, watch = llama.new_cache(), Watch([0], 1)
    held = np.array([0.0, 7, 9, 4])
    llama.run(llama.embed(mx.array([[5, 6, 7, 8]])), range(1), held, cache, probe=watch)
    scores = np.array(score(LastRow(), 1, watch, 5, np.array([0.0, 2, 4, 7, 9]), llama, cache))
    assert scores[1] == 0
    assert scores[0] > 0 and scores[2] > 0
    assert scores.sum() == pytest.approx(1)


def test_layers_that_see_the_whole_prompt_are_preferred() -> None:
    gemma, mistral = (load_decoder(GOLDEN / name).config for name in ("gemma3", "mistral"))
    assert [layer.window for layer in gemma.layers] == [8, 8, None, 8]
    assert LastRow().layers(3, gemma) == Aggregated(depth=4).layers(4, gemma) == (2,)
    assert Aggregated(depth=2).layers(2, gemma) == (0, 1)
    assert Aggregated(depth=2).layers(3, mistral) == (1, 2)


@pytest.mark.parametrize(
    "arguments", [{"queries": 0}, {"pool": 0}, {"depth": 0}, {"over_heads": "median"}, {"over_queries": "sum"}]
)
def test_impossible_scorers_are_refused(arguments: dict) -> None:
    with pytest.raises(InvalidOptionError, match="does not exist"):
        Aggregated(**arguments)
