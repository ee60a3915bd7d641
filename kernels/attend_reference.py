"""How attention of one token is cut into splits, and the same splits in MLX operations.

The contract is in attend_decode.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from russet.kernels.backend import Backend, backend

SIMDGROUPS = 8

LOWEST = -1e30
"""The score of a row that is not there."""

_MAX_SPLITS = 16
_HEADS = 4
# Threadgroups that keep a device busy: the 132 multiprocessors of an H100 and then some, and the larger Apple GPUs.
_THREADGROUPS = {"cuda": 132, "metal": 64}


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
    return Plan(cut.heads, cut.sets, cut.lanes, cut.steps, splits)


def merge(mixed: mx.array, stats: mx.array) -> mx.array:
    """Put the splits together: [S, H, D] and [S, H, 2] to [H D]."""
    weights = stats[..., 1] * mx.exp(stats[..., 0] - stats[..., 0].max(axis=0))
    weights = weights / weights.sum(axis=0)
    return (weights[..., None] * mixed).sum(axis=0).reshape(-1)


def _turn(
    x: mx.array, weight: mx.array, rotation: mx.array, constants: mx.array, pairs: int, neighbours: bool
) -> mx.array:
    """Norm and rotate heads [n, D] in float32."""

    def norm(x: mx.array) -> mx.array:
        if weight.shape[0] != x.shape[1]:
            return x
        return x * mx.rsqrt((x * x).mean(axis=-1, keepdims=True) + constants[0]) * weight.astype(mx.float32)

    def rotate(x: mx.array) -> mx.array:
        turned, rest = x[:, : 2 * pairs], x[:, 2 * pairs :]
        pair = turned.reshape(-1, pairs, 2) if neighbours else turned.reshape(-1, 2, pairs).swapaxes(1, 2)
        cosine, sine = (rotation[:, 0], rotation[:, 1]) if neighbours else (rotation[0], rotation[1])
        first, second = pair[..., 0], pair[..., 1]
        pair = mx.stack([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
        turned = pair if neighbours else pair.swapaxes(1, 2)
        return mx.concatenate([turned.reshape(x.shape[0], -1), rest], axis=1)

    return mx.where(constants[2] != 0, norm(rotate(x)), rotate(norm(x)))


def rotation_form(rotation: mx.array) -> tuple[int, bool]:
    """Rotated pairs, and whether they are neighbours."""
    neighbours = rotation.shape[1] == 2
    return rotation.shape[0 if neighbours else 1], neighbours


def _store(x: mx.array, scale: mx.array, dtype: mx.Dtype) -> mx.array:
    """Features as a row keeps them; int8 as engine/rows.py has it."""
    return (mx.clip(mx.round(x / scale), -128, 127) if dtype == mx.int8 else x / scale).astype(dtype)


def attend_decode(
    qkv: mx.array,
    keys: mx.array,
    values: mx.array,
    recent: mx.array,
    state: mx.array,
    rotation: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    kv_scales: mx.array,
    constants: mx.array,
) -> list[mx.array]:
    kv_heads, dim = keys.shape[1], keys.shape[3]
    parts = qkv.reshape(-1, dim)
    heads = parts.shape[0] - 2 * kv_heads
    queries = _turn(parts[:heads], q_norm, rotation, constants, *rotation_form(rotation))
    key = _turn(parts[heads : heads + kv_heads], k_norm, rotation, constants, *rotation_form(rotation))
    new = mx.stack([_store(key, kv_scales[0], keys.dtype), _store(parts[heads + kv_heads :], kv_scales[1], keys.dtype)])
    recent_out = mx.where((mx.arange(recent.shape[2]) == state[1])[:, None], new[:, :, None], recent)
    return [*_splits(queries, keys, values, recent_out, state, kv_scales, constants, True), recent_out]


def attend_shared(
    qkv: mx.array,
    keys: mx.array,
    values: mx.array,
    recent: mx.array,
    state: mx.array,
    rotation: mx.array,
    q_norm: mx.array,
    kv_scales: mx.array,
    constants: mx.array,
) -> list[mx.array]:
    queries = _turn(qkv.reshape(-1, keys.shape[3]), q_norm, rotation, constants, *rotation_form(rotation))
    return _splits(queries, keys, values, recent, state, kv_scales, constants, False)


def _splits(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    recent: mx.array,
    state: mx.array,
    kv_scales: mx.array,
    constants: mx.array,
    new_apart: bool,
) -> list[mx.array]:
    """Mixed and stats, over the rows that each split of the kernel takes; `new_apart` gives the new row to the last."""
    kv_heads, capacity, dim = keys.shape[1:]
    cut = plan(backend(), queries.shape[0], keys)
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
        for rows, part, scale in zip((keys, values), recent, kv_scales[:2], strict=True)
    )
    scores = (queries.reshape(kv_heads, -1, dim) * constants[1]) @ all_keys.swapaxes(1, 2)
    scores = mx.where(mine, scores, LOWEST)
    top = scores.max(axis=-1, keepdims=True)
    weights = mx.where(mine, mx.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ all_values) / mx.where(total > 0, total, 1.0)
    stats = mx.concatenate([top, total], axis=-1)
    shape = (cut.splits, queries.shape[0])
    return [mixed.reshape(*shape, dim), stats.reshape(*shape, 2)]
