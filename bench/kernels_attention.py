"""Timed: sigmoid attention, beside MLX's softmax attention and sigmoid attention in plain MLX operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import mlx.core as mx

from russet.bench.kernels_clock import Case, Side, calls, fresh
from russet.engine.device import on_gpu
from russet.kernels.sigmoid_attention import DECODE, PREFILL, sigmoid_attention

# A prefill's inputs are read many times over, so few calls tell enough; the plain version's scores take 1 GB each.
_PREFILL_CALLS = 4


def sigmoid_prefill(heads: int, rows: int, dim: int) -> dict[str, Side]:
    """Causal attention of `rows` over themselves in float16."""
    sets, bias = fresh(_random(3, (1, heads, rows, dim))), -math.log(rows)
    # Of the two products, a causal mask leaves half.
    work, size = 2 * dim * heads * rows * rows, 4 * sets[0][0].nbytes
    seen, plain = mx.tri(rows, dtype=mx.bool_), mx.compile(_plain) if on_gpu() else _plain
    mx.eval(seen)
    sides = {
        "russet": (lambda q, k, v: sigmoid_attention(q, k, v, dim**-0.5, bias), (PREFILL,)),
        "mlx, softmax": (
            lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=dim**-0.5, mask="causal"),
            (),
        ),
        "mlx, plain": (lambda q, k, v: plain(q, k, v, mx.array(bias, q.dtype), seen), ()),
    }
    return {
        name: Side(calls(call, sets, _PREFILL_CALLS), size, work, kernels) for name, (call, kernels) in sides.items()
    }


def sigmoid_decode(heads: int, kv_heads: int, rows: int, dim: int) -> dict[str, Side]:
    """One token over cached rows in float16."""
    (queries,) = _random(1, (1, heads, 1, dim))
    sets = fresh(_random(2, (1, kv_heads, rows, dim)))
    size, scale, bias = sum(array.nbytes for array in sets[0]) + 2 * queries.nbytes, dim**-0.5, -math.log(rows)
    mx.eval(queries)
    return {
        "russet": Side(
            calls(lambda k, v: sigmoid_attention(queries, k, v, scale, bias, None), sets), size, kernels=(DECODE,)
        ),
        "mlx, softmax": Side(
            calls(lambda k, v: mx.fast.scaled_dot_product_attention(queries, k, v, scale=scale), sets), size
        ),
    }


def cases() -> Iterator[Case]:
    """Llama-2-7B's heads, and Llama-3-8B's in decoding."""
    yield Case("sigmoid prefill 32 heads 4096 rows", partial(sigmoid_prefill, 32, 4096, 128))
    for kv_heads in (32, 8):
        yield Case(f"sigmoid decode 32/{kv_heads} heads 4096 rows", partial(sigmoid_decode, 32, kv_heads, 4096, 128))


def _plain(q: mx.array, k: mx.array, v: mx.array, bias: mx.array, seen: mx.array) -> mx.array:
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
    return mx.where(seen, mx.sigmoid(scores + bias), mx.zeros((), q.dtype)) @ v


def _random(count: int, shape: tuple[int, ...]) -> list[mx.array]:
    return [mx.random.normal(shape, key=mx.random.key(i)).astype(mx.float16) for i in range(count)]
