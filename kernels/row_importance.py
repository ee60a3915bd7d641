"""How much the last query attends to each key: softmax over all keys, mean over heads (LazyLLM, arXiv 2407.14057).

queries  [1, H, 1, D], keys [1, KV, n, D] in any floating types, slices with a contiguous last axis; H a multiple of KV
result   float32 [n], sums to 1

Two launches and no [H, n] matrix, where D is a multiple of 16 from 32 to 256: `STATS` finds stats [S, H, 2], the
highest score and the sum of exponentials of each of S shares of the keys; `ROWS` scores again and adds probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import mlx.core as mx

from russet.kernels.attend_reference import LOWEST, SIMDGROUPS, Plan, plan
from russet.kernels.backend import Backend, backend
from russet.kernels.base import Inputs, Kernel, Launch, mode


def last_row_importance(queries: mx.array, keys: mx.array, scale: float) -> mx.array:
    """Return the mean over heads of softmax(scale q k^T) as float32 [n]; products and sums are in float32.

    Raises ValueError if there is more than one query row, or the shapes do not match.
    """
    batch, heads, rows, dim = queries.shape
    if (batch, rows) != (1, 1) or keys.shape[0] != 1 or keys.shape[3] != dim or heads % keys.shape[1]:
        raise ValueError(f"queries {queries.shape} and keys {keys.shape} do not make one row of attention.")
    constants = _constants(scale)
    if backend() is None or mode() != "on" or dim % 16 or not 32 <= dim <= 256 or min(queries.size, keys.size) < 8:
        return mx.softmax(_scores(queries, keys, constants), axis=-1).mean(axis=0)
    (stats,) = STATS(queries, keys, constants)
    return ROWS(queries, keys, stats, constants)[0]


@lru_cache(maxsize=16)
def _constants(scale: float) -> mx.array:
    constants = mx.array([scale] + [0.0] * 7)
    mx.eval(constants)
    return constants


def _scores(queries: mx.array, keys: mx.array, constants: mx.array) -> mx.array:
    """Scores [H, n] in float32."""
    kv_heads, count, dim = keys.shape[1:]
    grouped = queries.reshape(kv_heads, -1, dim).astype(mx.float32) * constants[0]
    return (grouped @ keys[0].astype(mx.float32).swapaxes(-1, -2)).reshape(-1, count)


def _cut(target: Backend | None, queries: mx.array, keys: mx.array) -> Plan:
    return plan(target, queries.shape[1], keys)


def _stats(queries: mx.array, keys: mx.array, constants: mx.array) -> list[mx.array]:
    cut = _cut(backend(), queries, keys)
    scores = _scores(queries, keys, constants)
    share = mx.arange(scores.shape[1]) // cut.round_rows % cut.splits
    mine = share == mx.arange(cut.splits)[:, None, None]
    top = mx.where(mine, scores, LOWEST).max(axis=-1)
    total = mx.where(mine, mx.exp(scores - top[..., None]), 0.0).sum(axis=-1)
    return [mx.stack([top, total], axis=-1)]


def _rows(queries: mx.array, keys: mx.array, stats: mx.array, constants: mx.array) -> list[mx.array]:
    top = stats[..., 0].max(axis=0)
    total = (stats[..., 1] * mx.exp(stats[..., 0] - top)).sum(axis=0)
    return [(mx.exp(_scores(queries, keys, constants) - top[:, None]) / total[:, None]).mean(axis=0)]


def _template(cut: Plan, keys: mx.array) -> tuple[tuple[str, int | mx.Dtype], ...]:
    sizes = (("D", keys.shape[3]), ("LANES", cut.lanes), ("STEPS", cut.steps), ("HEADS", cut.heads))
    return (("K", keys.dtype), *sizes, ("SIMDGROUPS", SIMDGROUPS))


def _launch_stats(target: Backend, queries: mx.array, keys: mx.array, constants: mx.array) -> Launch:
    cut, threads = _cut(target, queries, keys), 32 * SIMDGROUPS
    grid = (cut.splits * threads, keys.shape[1], cut.sets)
    return Launch(grid, (threads, 1, 1), _template(cut, keys), ((cut.splits, queries.shape[1], 2),), (mx.float32,))


def _launch_rows(target: Backend, queries: mx.array, keys: mx.array, stats: mx.array, constants: mx.array) -> Launch:
    cut, threads = _cut(target, queries, keys), 32 * SIMDGROUPS
    blocks = -(-keys.shape[2] // (cut.round_rows // SIMDGROUPS))
    return Launch((blocks * threads, 1, 1), (threads, 1, 1), _template(cut, keys), ((keys.shape[2],),), (mx.float32,))


def random_inputs(heads: int, kv_heads: int, n: int, dim: int, dtype: mx.Dtype, key_dtype: mx.Dtype) -> Inputs:
    """Random queries, keys (a slice of a larger buffer), and constants, the same ones each time."""
    key = mx.random.split(mx.random.key(heads * n + dim), 2)
    queries = mx.random.normal((1, heads, 1, dim), key=key[0]).astype(dtype)
    buffer = mx.random.normal((1, kv_heads, n + 9, dim), key=key[1]).astype(key_dtype)
    return [queries, buffer[:, :, :n], _constants(dim**-0.5)]


def _with_stats(inputs: Inputs) -> Inputs:
    queries, keys, constants = inputs
    return [queries, keys, _stats(queries, keys, constants)[0], constants]


def _sample(queries: mx.array, keys: mx.array, *rest: mx.array) -> Inputs:
    kv_heads, _, dim = keys.shape[1:]
    few, rows = min(kv_heads, 2), 2 * plan("metal", queries.shape[1], keys).round_rows + 5
    return random_inputs(queries.shape[1] // kv_heads * few, few, rows, dim, queries.dtype, keys.dtype)


def _examples(target: Backend) -> Iterator[Inputs]:
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        for heads, dim in ((8, 128), (3, 64)):
            yield random_inputs(2 * heads, 2, 530, dim, dtype, dtype)


_TOLERANCE = {mx.float16: 2e-5, mx.bfloat16: 2e-5, mx.float32: 2e-5}
STATS = Kernel(
    name="importance_stats",
    body="importance_stats.metal",
    headers=("cached_rows.h", "importance.h"),
    inputs=("queries", "keys", "constants"),
    outputs=("stats",),
    reference=_stats,
    launch=_launch_stats,
    sample=_sample,
    examples=_examples,
    tolerance=_TOLERANCE,
    strided=True,
)
ROWS = Kernel(
    name="importance_rows",
    body="importance_rows.metal",
    headers=("cached_rows.h", "importance.h"),
    inputs=("queries", "keys", "stats", "constants"),
    outputs=("importance",),
    reference=_rows,
    launch=_launch_rows,
    sample=lambda *inputs: _with_stats(_sample(*inputs)),
    examples=lambda target: map(_with_stats, _examples(target)),
    tolerance=_TOLERANCE,
    strided=True,
)
