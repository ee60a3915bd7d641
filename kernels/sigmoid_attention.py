"""Sigmoid attention, O = sigmoid(Q K^T scale + b) V, over causal rows (https://arxiv.org/abs/2409.04431).

queries       [B, H, R, D], the last R of N rows; row i sees the first N - R + i + 1 keys
keys, values  [B, KV, N, D], KV a divisor of H: heads H / KV at a time share them
rule          [8] float32: scale, bias, weight, and zeros. Row i's b is bias - weight log(keys that row i sees)
output        prefill [B, R, H, D], decode [parts, B, H, 1, D]

All are float16, bfloat16 or float32 (not in the prefill on CUDA, whose tensor cores would round it). Slices are read
where they lie; the last axis is contiguous, and rows begin on 16-byte boundaries. D is a multiple of 16 up to 128 in
the prefill, and of 8 up to 256 in decoding. The paper's b is -log n with the length n that the model was trained on.

Without a maximum and a normaliser, the output is a sum over keys, and parts of the keys just add up. Products and sums
are in float32. The prefill keeps no R x N matrix: it scores a few keys, rounds their weights to the type of the
values (on CUDA; weights times 4096, so that 1 / n is no subnormal float16), and adds the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import mlx.core as mx

from russet.kernels.backend import Backend, backend
from russet.kernels.base import Inputs, Kernel, Launch

_SIMDGROUPS = 4
_REFERENCE_SCORES = 1 << 24
_PARTS_IN_ALL = 512
_KEYS_IN_A_PART = 64
_TOLERANCE = {mx.float16: 2e-3, mx.bfloat16: 1e-2, mx.float32: 2e-5}


def sigmoid_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    bias: float | None,
    mask: mx.array | str | None = "causal",
) -> mx.array:
    """Return the attention [B, H, R, D], by a kernel where one suits, or by MLX's operations.

    `bias` is b, or None for minus the logarithm of the number of keys that a row sees. `mask` is "causal", None where
    every row sees every key, or booleans [R, N]. Raises ValueError if the shapes do not match.
    """
    (batch, heads, rows, dim), (_, kv_heads, n, _) = queries.shape, keys.shape
    if keys.shape != values.shape or keys.shape != (batch, kv_heads, n, dim) or heads % kv_heads or rows > n:
        raise ValueError(f"queries {queries.shape}, keys {keys.shape}, values {values.shape} do not make attention.")
    rule = _rule(scale, bias)
    if isinstance(mask, mx.array) or not queries.dtype == keys.dtype == values.dtype or queries.dtype not in _TOLERANCE:
        return reference(queries, keys, values, rule, mask)
    if rows == 1 and dim % 8 == 0 and dim <= 256:
        (parts,) = DECODE(queries, keys, values, rule)
        return parts[0] if parts.shape[0] == 1 else parts.sum(axis=0).astype(queries.dtype)
    if mask == "causal" and dim % 16 == 0 and dim <= 128 and (queries.dtype != mx.float32 or backend() != "cuda"):
        return PREFILL(queries, keys, values, rule)[0].transpose(0, 2, 1, 3)
    return reference(queries, keys, values, rule, mask)


def reference(
    queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array, mask: mx.array | str | None = "causal"
) -> mx.array:
    """The same by MLX's operations, some rows at a time, so that the scores in memory are bounded."""
    (batch, heads, rows, _), n = queries.shape, keys.shape[2]
    step = max(1, min(rows, _REFERENCE_SCORES // (batch * heads * n)))
    mixed = []
    for start in range(0, rows, step):
        end = min(start + step, rows)
        reach, seen, visible = n, None, mx.array([[n]])
        if isinstance(mask, mx.array):
            seen = mask[start:end]
            visible = seen.sum(axis=1, keepdims=True)
        elif mask == "causal":
            reach = n - rows + end
            visible = mx.arange(n - rows + start + 1, reach + 1)[:, None]
            seen = mx.arange(reach) < visible
        weights = _weights(queries[:, :, start:end], keys[:, :, :reach], rule, visible)
        if seen is not None:
            weights = mx.where(seen, weights, 0.0)
        mixed.append(_mix(weights, values[:, :, :reach]).reshape(batch, heads, end - start, -1))
    return (mixed[0] if len(mixed) == 1 else mx.concatenate(mixed, axis=2)).astype(queries.dtype)


def random_inputs(
    heads: int, kv_heads: int, rows: int, n: int, dim: int, dtype: mx.Dtype, bias: float | None = None, batch: int = 1
) -> Inputs:
    """Random queries, keys, values and rule, the same ones each time; each lies in memory in its own way."""
    seeds = mx.random.split(mx.random.key(rows * n + dim), 3)
    queries, keys = (
        mx.random.normal((batch, length, count, dim), key=seed).astype(dtype).transpose(0, 2, 1, 3)
        for length, count, seed in ((rows, heads, seeds[0]), (n, kv_heads, seeds[1]))
    )
    values = mx.random.normal((batch, kv_heads, n + 8, dim), key=seeds[2]).astype(dtype)
    return queries, keys, values[:, :, :n], _rule(dim**-0.5, bias)


@cache
def _rule(scale: float, bias: float | None) -> mx.array:
    made = mx.array([scale, 0.0 if bias is None else bias, float(bias is None), 0, 0, 0, 0, 0], mx.float32)
    mx.eval(made)
    return made


def _weights(queries: mx.array, keys: mx.array, rule: mx.array, visible: mx.array) -> mx.array:
    """[B, KV, H / KV, R, N] in float32; heads that share keys make one product with them."""
    (batch, heads, rows, dim), kv_heads = queries.shape, keys.shape[1]
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads * rows, dim).astype(mx.float32) * rule[0]
    scores = (grouped @ keys.astype(mx.float32).swapaxes(-1, -2)).reshape(batch, kv_heads, -1, rows, keys.shape[2])
    return mx.sigmoid(scores + (rule[1] - rule[2] * mx.log(visible.astype(mx.float32))))


def _mix(weights: mx.array, values: mx.array) -> mx.array:
    """[B, KV, H / KV * R, D] in float32."""
    batch, kv_heads, group, rows, n = weights.shape
    return weights.reshape(batch, kv_heads, group * rows, n) @ values.astype(mx.float32)


def _reference_prefill(queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> list[mx.array]:
    return [reference(queries, keys, values, rule).transpose(0, 2, 1, 3)]


def _reference_decode(queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> list[mx.array]:
    (batch, kv_heads, n, dim), parts = keys.shape, _parts(keys)
    if parts == 1:
        return [reference(queries, keys, values, rule, None)[None]]
    span = -(-n // parts)
    padding = [(0, 0), (0, 0), (0, parts * span - n), (0, 0)]
    weights = _weights(queries, keys, rule, mx.array([[n]])).reshape(batch, kv_heads, -1, n)
    weights = mx.pad(weights.swapaxes(2, 3), padding).reshape(batch, kv_heads, parts, span, -1).swapaxes(3, 4)
    split = mx.pad(values.astype(mx.float32), padding).reshape(batch, kv_heads, parts, span, dim)
    return [(weights @ split).transpose(2, 0, 1, 3, 4).reshape(parts, batch, -1, 1, dim)]


def _parts(keys: mx.array) -> int:
    """Into how many parts the keys go: enough to keep a GPU busy."""
    return max(1, min(_PARTS_IN_ALL // (keys.shape[0] * keys.shape[1]), keys.shape[2] // _KEYS_IN_A_PART))


def _launch_prefill(target: Backend, queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> Launch:
    if target == "cuda":
        return _prefill(queries, keys=64 if queries.shape[3] <= 64 else 32, step=32, buffers=2)
    # 32 KB of threadgroup memory, and fewer registers than on CUDA
    return _prefill(queries, keys=16 if queries.dtype == mx.float32 else 32, step=16, buffers=1)


def _prefill(
    queries: mx.array, keys: int, step: int, buffers: int, tiles: int = 1, simdgroups: int = _SIMDGROUPS
) -> Launch:
    """The launch with these template arguments, which src/sigmoid_prefill.metal explains."""
    batch, heads, rows, dim = queries.shape
    template = (
        ("T", queries.dtype),
        ("D", dim),
        ("SIMDGROUPS", simdgroups),
        ("TILES", tiles),
        ("KEYS", keys),
        ("STEP", step),
        ("BUFFERS", buffers),
    )
    threads = 32 * simdgroups
    grid = (-(-rows // (16 * tiles * simdgroups)) * threads, heads, batch)
    return Launch(grid, (threads, 1, 1), template, ((batch, rows, heads, dim),), (queries.dtype,))


def _launch_decode(target: Backend, queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> Launch:
    (batch, heads, _, dim), parts = queries.shape, _parts(keys)
    lanes = next(count for count in (32, 16, 8, 4, 2, 1) if dim // 8 % count == 0)
    chunks, group = dim // 8 // lanes, heads // keys.shape[1]
    most = max(1, (8 if target == "cuda" else 4) // chunks)
    each = next(count for count in range(min(most, group), 0, -1) if group % count == 0)
    held = queries.dtype if parts == 1 else mx.float32
    template = (
        ("T", queries.dtype),
        ("P", held),
        ("D", dim),
        ("HEADS", each),
        ("LANES", lanes),
        ("CHUNKS", chunks),
        ("LOADS", max(1, (2 if queries.dtype == mx.float32 else 4) // chunks)),
        ("SIMDGROUPS", _SIMDGROUPS),
    )
    threads = 32 * _SIMDGROUPS
    grid = (heads // each * threads, parts, batch)
    return Launch(grid, (threads, 1, 1), template, ((parts, batch, heads, 1, dim),), (held,))


def _sample_prefill(queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> Inputs:
    return random_inputs(2, 1, 70, 90, queries.shape[3], queries.dtype)


def _sample_decode(queries: mx.array, keys: mx.array, values: mx.array, rule: mx.array) -> Inputs:
    group, n = queries.shape[1] // keys.shape[1], 40 if _parts(keys) == 1 else 300
    return random_inputs(2 * group, 2, 1, n, queries.shape[3], queries.dtype)


def _examples_prefill(target: Backend) -> Iterator[Inputs]:
    for dtype, dim in product(list(_TOLERANCE)[: 2 if target == "cuda" else 3], (64, 96, 128)):
        yield random_inputs(2, 1, 20, 45, dim, dtype)


def _examples_decode(target: Backend) -> Iterator[Inputs]:
    for dtype, dim, group, n in product(_TOLERANCE, (64, 96, 128), (1, 3, 4), (40, 300)):
        yield random_inputs(group, 1, 1, n, dim, dtype)


_INPUTS = ("queries", "keys", "values", "rule")

PREFILL = Kernel(
    name="sigmoid_prefill",
    body="sigmoid_prefill.metal",
    headers=("matrices.h", "sigmoid.h"),
    inputs=_INPUTS,
    outputs=("out",),
    reference=_reference_prefill,
    launch=_launch_prefill,
    sample=_sample_prefill,
    examples=_examples_prefill,
    tolerance=_TOLERANCE,
    strided=True,
)
DECODE = Kernel(
    name="sigmoid_decode",
    body="sigmoid_decode.metal",
    headers=("matrices.h", "sigmoid.h"),
    inputs=_INPUTS,
    outputs=("out",),
    reference=_reference_decode,
    launch=_launch_decode,
    sample=_sample_decode,
    examples=_examples_decode,
    tolerance=_TOLERANCE,
    strided=True,
)
