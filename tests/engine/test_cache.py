"""The KV cache: positions, masks, windows, sharing, int8 rows, and going back."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.engine.cache import WINDOW_SLACK, KVCache, Slot
from russet.engine.rows import GROWTH, RING, Int8Rows, PlainRows
from russet.models.config import DecoderConfig, LayerSpec, Rope

HEADS, WIDTH = 2, 4
LAYER = LayerSpec(heads=4, kv_heads=HEADS, head_dim=WIDTH, ffn_dim=8, rope=Rope(dims=WIDTH, theta=1e4))


def config(*layers: LayerSpec, **changes: object) -> DecoderConfig:
    base = DecoderConfig("llama", 16, 32, layers, max_positions=4096, norm_eps=1e-5)
    return replace(base, **changes)  # type: ignore[arg-type]


def rows_at(positions: np.ndarray) -> tuple[mx.array, mx.array]:
    """Keys whose every feature is the row's position, and values of twice that."""
    keys = np.broadcast_to(positions.astype(np.float32)[None, None, :, None], (1, HEADS, len(positions), WIDTH))
    return mx.array(keys), mx.array(2 * keys)


def seen(slot: Slot, positions: int | np.ndarray, queries: int) -> list[list[float]]:
    """For every query, the positions of the rows it may attend to, by way of keys and mask."""
    keys, values, mask = slot.read(positions, queries)
    stored = np.array(keys)[0, 0, :, 0]
    assert np.array_equal(np.array(values)[0, 1, :, 3], 2 * stored)
    if mask is None:
        allowed = np.ones((queries, len(stored)), dtype=bool)
    elif isinstance(mask, str):
        assert mask == "causal"
        allowed = np.tril(np.ones((queries, len(stored)), dtype=bool), k=len(stored) - queries)
    else:
        allowed = np.array(mask)
    return [sorted(stored[row].tolist()) for row in allowed]


def expected(stored: list[float], queries: list[float], window: int | None) -> list[list[float]]:
    return [sorted(p for p in stored if p <= q and (window is None or q - p < window)) for q in queries]


@st.composite
def ragged_appends(draw: st.DrawFn) -> list[np.ndarray]:
    """Some disjoint groups of positions, in any order, whole or halves."""
    halves = draw(st.lists(st.integers(0, 80), min_size=1, max_size=24, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, len(halves)), max_size=4)))
    groups = np.split(np.array(halves, dtype=np.float64) / 2, cuts)
    return [group for group in groups if len(group)]


@settings(deadline=None, max_examples=80)
@given(ragged_appends(), st.sampled_from([None, 1, 3, 16]))
def test_ragged_rows_are_seen_by_position(groups: list[np.ndarray], window: int | None) -> None:
    slot = Slot(PlainRows(1, HEADS, WIDTH, mx.float32), window)
    stored: list[float] = []
    for group in groups:
        slot.append(*rows_at(group), group)
        stored += group.tolist()
        assert slot.positions.tolist() == stored
        assert seen(slot, group, len(group)) == expected(stored, group.tolist(), window)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=5),
    st.sampled_from([None, 1, 5, 64]),
    st.integers(0, 40),
)
def test_contiguous_rows_are_seen_by_position(chunks: list[int], window: int | None, start: int) -> None:
    slot = Slot(PlainRows(1, HEADS, WIDTH, mx.float32), window)
    end = start
    for n in chunks:
        slot.append(*rows_at(np.arange(end, end + n)), end)
        end += n
        queries = [float(q) for q in range(end - n, end)]
        assert seen(slot, end - n, n) == expected([float(p) for p in range(start, end)], queries, window)
    if window is not None:
        assert slot.rows.length <= window + WINDOW_SLACK + max(chunks)


def test_revived_row_between_others_is_masked_by_position() -> None:
    slot = Slot(PlainRows(1, HEADS, WIDTH, mx.float32), None)
    slot.append(*rows_at(np.array([0.0, 4.0])), np.array([0.0, 4.0]))
    slot.append(*rows_at(np.array([2.0])), np.array([2.0]))
    assert seen(slot, np.array([2.0]), 1) == [[0.0, 2.0]]
    assert seen(slot, np.array([5.0]), 1) == [[0.0, 2.0, 4.0]]


def test_shared_layers_take_no_memory_and_read_the_owner() -> None:
    shared = config(LAYER, LAYER, replace(LAYER, kv_source=1), replace(LAYER, kv_source=1))
    cache = KVCache(shared, mx.float32)
    assert list(cache.slots) == [0, 1]
    assert cache.slot(3) is cache.slot(1)
    assert cache.bytes_per_position == 2 * (2 * HEADS * WIDTH * 4)


@pytest.mark.parametrize(("kv_bits", "count"), [(16, 2), (8, 4)])
def test_an_empty_slot_takes_room_for_what_comes_after_its_first_rows(kv_bits: int, count: int) -> None:
    cache = KVCache(config(LAYER), mx.float32, kv_bits)
    cache.reserve(1000 - RING)
    assert cache.arrays() == []
    slot, positions = cache.slot(0), np.array([0.0, 1.0, 500.0, 899.0])
    slot.append(*rows_at(positions), positions)
    # 4 rows, and room for 100 more positions.
    assert [buffer.shape[2] for buffer in cache.arrays()] == [GROWTH] * count
    slot.append(*rows_at(np.arange(100)), 900)
    assert [buffer.shape[2] for buffer in cache.arrays()] == [GROWTH] * count
    assert slot.positions.tolist() == [*positions, *range(900, 1000)]
    whole = KVCache(config(LAYER), mx.float32, kv_bits)
    whole.reserve(1000 - RING)
    whole.slot(0).append(*rows_at(np.arange(4)), 0)
    assert [buffer.shape[2] for buffer in whole.arrays()] == [1024] * count


@pytest.mark.parametrize("rows", [GROWTH, GROWTH + 1])
def test_first_rows_are_stored_in_the_cache_s_own_format_and_order(rows: int) -> None:
    store = PlainRows(1, HEADS, WIDTH, mx.float16)
    keys = mx.arange(rows * HEADS * WIDTH, dtype=mx.float32).reshape(1, rows, HEADS, WIDTH).swapaxes(1, 2) / 1024
    store.append(keys, -keys)
    assert store.buffers[0].dtype == mx.float16 and store.buffers[0].shape[2] % GROWTH == 0
    assert mx.array_equal(store.read(0)[0], keys.astype(mx.float16))
    store.append(keys[:, :, :3], keys[:, :, :3])
    assert mx.array_equal(store.read(0)[1][:, :, -3:], keys[:, :, :3].astype(mx.float16))


def test_trim_goes_back_and_forgets() -> None:
    cache = KVCache(config(LAYER), mx.float32)
    slot = cache.slot(0)
    slot.append(*rows_at(np.arange(10)), 0)
    assert cache.trim(6)
    assert cache.next_position == 6
    slot.append(*rows_at(np.arange(6, 8)), 6)
    assert slot.positions.tolist() == list(range(8))
    assert seen(slot, 6, 2) == [list(range(7)), list(range(8))]


def test_trim_refuses_to_go_back_to_rows_that_a_window_dropped() -> None:
    cache = KVCache(config(replace(LAYER, window=8)), mx.float32)
    slot = cache.slot(0)
    total = WINDOW_SLACK + 50
    for start in range(0, total, 10):
        slot.append(*rows_at(np.arange(start, start + 10)), start)
    assert slot.first > 0
    held = slot.rows.length
    assert not cache.trim(4)
    assert slot.rows.length == held
    assert cache.trim(total - 1)
    assert seen(slot, total - 2, 1) == [[float(p) for p in range(total - 9, total - 1)]]


def test_trim_of_out_of_order_rows_is_refused() -> None:
    cache = KVCache(config(LAYER), mx.float32)
    slot = cache.slot(0)
    slot.append(*rows_at(np.array([0.0, 9.0])), np.array([0.0, 9.0]))
    slot.append(*rows_at(np.array([3.0])), np.array([3.0]))
    assert not cache.trim(5)
    assert cache.trim(10)


def test_int8_rows_halve_16_bit_memory_and_round_to_a_127th() -> None:
    mx.random.seed(1)
    keys, values = mx.random.normal((1, HEADS, 300, 64)), 50 * mx.random.normal((1, HEADS, 300, 64))
    rows = Int8Rows(1, HEADS, 64, mx.float32)
    rows.append(keys[:, :, :7], values[:, :, :7])
    rows.append(keys[:, :, 7:], values[:, :, 7:])
    for read, wrote in zip(rows.read(0), (keys, values), strict=True):
        step = mx.abs(wrote).max(axis=-1, keepdims=True) / 127
        assert mx.all(mx.abs(read - wrote) <= 0.5001 * step).item()
    assert rows.bytes_per_row == HEADS * 2 * (64 + 4)
    assert rows.bytes_per_row < 0.54 * PlainRows(1, HEADS, 64, mx.float16).bytes_per_row


def test_int8_rows_with_the_models_scales_store_no_others() -> None:
    rows = Int8Rows(1, HEADS, WIDTH, mx.float32)
    rows.use_scales(mx.array(0.5), mx.array(0.25))
    rows.append(mx.full((1, HEADS, 1, WIDTH), 1.3), mx.full((1, HEADS, 1, WIDTH), -100.0))
    keys, values = rows.read(0)
    assert keys[0, 0, 0, 0].item() == 1.5
    assert values[0, 0, 0, 0].item() == -32.0  # clipped to -128 steps
    assert rows.bytes_per_row == HEADS * 2 * WIDTH


@pytest.mark.parametrize("reserved", [0, 1000])
def test_buffers_grow_in_steps_or_as_reserved(reserved: int) -> None:
    rows = PlainRows(1, HEADS, WIDTH, mx.float32)
    rows.reserve(reserved)
    capacities = set()
    for i in range(GROWTH + 2):
        rows.append(*rows_at(np.array([float(i)])))
        capacities.add(rows.buffers[0].shape[2])
    assert capacities == ({1024} if reserved else {GROWTH, 2 * GROWTH})
    assert np.array_equal(np.array(rows.read(0)[0])[0, 0, :, 0], np.arange(GROWTH + 2))
