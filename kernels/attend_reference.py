"""How attention of one token is cut into splits, and the same splits in MLX operations.

The contract is in attend_decode.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from russet.kernels.backend import CORES, Backend, backend

SIMDGROUPS = 8

LOWEST = -1e30
"""The score of a row that is not there."""

_MAX_SPLITS = 16
_HEADS = 4
# Threadgroups that keep a device busy: those of an H100, and the larger Apple GPUs.
_THREADGROUPS = {"cuda": CORES, "metal": 64}


@dataclass(frozen=True, slots=True)
class Plan:
    """How the work is cut: query heads a threadgroup, lanes a row, reads a block of rows, and splits."""

    heads: int
    sets: int
    lanes: int
    steps: int
    splits: int

    @property
    def round_rows(self) -> int:
        """Rows that a threadgroup takes in at once."""
        return SIMDGROUPS * self.steps * 32 // self.lanes


def plan(target: Backend | None, heads: int, keys: mx.array) -> Plan:
    """Cut the work of `heads` query heads over `keys` [1, KV, C, D]."""
    _, kv_heads, capacity, dim = keys.shape
    group = heads // kv_heads
    # At least 8 features a lane, and what a simdgroup holds of queries and sums stays in registers.
    lanes = next((count for count in (32, 16, 8) if dim % (4 * count) == 0 and dim >= 8 * count), 4 if dim % 32 else 8)
    most = max(1, min(_HEADS, 32 * lanes // dim, 512 // dim))
    sets = -(-group // most)
    cut = Plan(-(-group // sets), sets, lanes, min(lanes, 4 if keys.dtype == mx.float32 else 8), 1)
    wanted = round(_THREADGROUPS[target or "metal"] / (kv_heads * sets))
    splits = max(1, min(_MAX_SPLITS, wanted, capacity // cut.round_rows))
    # A power of two, for what merges the splits is compiled for each number of them.
    return Plan(cut.heads, cut.sets, cut.lanes, cut.steps, 1 << (splits.bit_length() - 1))


def splits_of(parts: mx.array, heads: int, dim: int) -> int:
    """The number of splits in `parts` [S H D + 2 S H]."""
    return parts.size // (heads * (dim + 2))


def merge(parts: mx.array, heads: int, dim: int) -> mx.array:
    """Put the splits together: `parts` [S H D + 2 S H] to [H D]."""
    splits = splits_of(parts, heads, dim)
    mixed = parts[: splits * heads * dim].reshape(splits, heads, dim)
    stats = parts[splits * heads * dim :].reshape(splits, heads, 2)
    weights = stats[..., 1] * mx.exp(stats[..., 0] - stats[..., 0].max(axis=0))
    weights = weights / weights.sum(axis=0)
    return (weights[..., None] * mixed).sum(axis=0).reshape(-1)


def random_parts(splits: int, heads: int, dim: int) -> mx.array:
    """Random parts [S H D + 2 S H], the same ones each time; of several splits the last has no rows."""
    keys = mx.random.split(mx.random.key(splits + heads + dim), 3)
    there = ((mx.arange(splits) < splits - 1) | (splits == 1))[:, None]
    mixed = mx.where(there[..., None], mx.random.normal((splits, heads, dim), key=keys[0]), 0.0)
    top = mx.where(there, mx.random.normal((splits, heads), key=keys[1]) * 3, LOWEST)
    total = mx.where(there, mx.random.uniform(1.0, 9.0, (splits, heads), key=keys[2]), 0.0)
    return mx.concatenate([mixed.reshape(-1), mx.stack([top, total], axis=-1).reshape(-1)])


def _turn(x: mx.array, weight: mx.array, step: mx.array, form: mx.array) -> mx.array:
    """Norm and rotate heads [n, D] in float32; `weight` is empty where there are no norms."""
    at, pairs, neighbours = mx.arange(x.shape[1]), form[4].astype(mx.int32), form[5] != 0
    turns = at < 2 * pairs
    second = mx.where(neighbours, at % 2 == 1, at >= pairs)
    pair = mx.where(turns, mx.where(neighbours, at // 2, mx.where(second, at - pairs, at)), 0)
    other = mx.where(turns, mx.where(neighbours, at + 1 - 2 * (at % 2), mx.where(second, pair, at + pairs)), at)
    cosines, sines = (mx.where(turns, step[mx.where(turns, 8 + n * pairs + pair, 0)], 1.0 - n) for n in (0, 1))

    def norm(x: mx.array) -> mx.array:
        return x * mx.rsqrt((x * x).mean(axis=-1, keepdims=True) + form[0]) * weight if weight.size else x

    def rotate(x: mx.array) -> mx.array:
        return x * cosines + x[:, other] * mx.where(second, sines, -sines)

    return mx.where(form[2] != 0, norm(rotate(x)), rotate(norm(x)))


def _store(x: mx.array, scale: mx.array, dtype: mx.Dtype) -> mx.array:
    """Features as a row keeps them; int8 as engine/rows.py has it."""
    return (mx.clip(mx.round(x / scale), -128, 127) if dtype == mx.int8 else x / scale).astype(dtype)


def attend_decode(
    qkv: mx.array, keys: mx.array, values: mx.array, recent: mx.array, step: mx.array, form: mx.array
) -> list[mx.array]:
    kv_heads, dim = keys.shape[1], keys.shape[3]
    projected = qkv.reshape(-1, dim)
    heads = projected.shape[0] - 2 * kv_heads
    queries = _turn(projected[:heads], form[8 : 8 + dim], step, form)
    new_keys = _turn(projected[heads : heads + kv_heads], form[8 + dim :], step, form)
    new_values = projected[heads + kv_heads :]
    new = mx.stack([_store(new_keys, form[6], keys.dtype), _store(new_values, form[7], keys.dtype)])
    recent_out = mx.where((mx.arange(recent.shape[2]) == step[1])[:, None], new[:, :, None], recent)
    return [_splits(queries, keys, values, recent_out, step, form, True), recent_out]


def attend_shared(
    qkv: mx.array, keys: mx.array, values: mx.array, recent: mx.array, step: mx.array, form: mx.array
) -> list[mx.array]:
    queries = _turn(qkv.reshape(-1, keys.shape[3]), form[8:], step, form)
    return [_splits(queries, keys, values, recent, step, form, False)]


def _splits(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    recent: mx.array,
    step: mx.array,
    form: mx.array,
    new_apart: bool,
) -> mx.array:
    """Parts, over the rows that each split of the kernel takes; `new_apart` gives the new row to the last."""
    kv_heads, capacity, dim = keys.shape[1:]
    cut = plan(backend(), queries.shape[0], keys)
    state = step[:4].astype(mx.int32)
    main, ring = mx.arange(capacity), mx.arange(recent.shape[2])
    seen = mx.concatenate([(main >= state[2]) & (main < state[0]), (ring >= state[3]) & (ring <= state[1])])
    number = mx.concatenate([main - state[2], state[0] - state[2] + ring - state[3]])
    split = number // cut.round_rows % cut.splits
    if new_apart:
        is_new = mx.concatenate([mx.zeros_like(main), ring == state[1]]) != 0
        split = mx.where(is_new, cut.splits - 1, split)
    mine = seen & (split == mx.arange(cut.splits)[:, None])[:, None, None]
    # What lies beyond the rows in use may be anything, NaN too.
    all_keys, all_values = (
        mx.where(seen[:, None], mx.concatenate([rows[0], part], axis=1).astype(mx.float32) * scale, 0.0)
        for rows, part, scale in zip((keys, values), recent, form[6:8], strict=True)
    )
    scores = (queries.reshape(kv_heads, -1, dim) * form[1]) @ all_keys.swapaxes(1, 2)
    scores = mx.where(mine, scores, LOWEST)
    top = scores.max(axis=-1, keepdims=True)
    weights = mx.where(mine, mx.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ all_values) / mx.where(total > 0, total, 1.0)
    stats = mx.concatenate([top, total], axis=-1)
    return mx.concatenate([mixed.reshape(-1), stats.reshape(-1)])
