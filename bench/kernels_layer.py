"""Timed: the kernels of a fused decode step's layer and head, at the shapes of well-known models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx

from russet.bench.kernels_clock import Case, Side, calls, fresh
from russet.bench.kernels_matvec import added, merged, normed
from russet.bench.shapes import SHAPES
from russet.kernels.attend_decode import ATTEND_DECODE, RECENT, Shape, random_inputs
from russet.kernels.attend_reference import plan, splits_of
from russet.kernels.backend import backend
from russet.models.config import LayerSpec
from russet.models.families import read_decoder

_DECODED = (("smollm2-135m", 4), ("llama-3b", 2), ("llama-3b", 4), ("llama-2-7b", 4))
_CONTEXTS = (512, 4096)
_IN_RING = 15


def attend(heads: int, kv_heads: int, dim: int, rows: int) -> dict[str, Side]:
    """Attention of one token over float16 rows, with rotation, QK-norm and the new row; MLX's is attention alone."""
    kept, capacity = rows - _IN_RING - 1, -(-rows // 256) * 256
    qkv, keys, values, recent, step, form = random_inputs(
        Shape(heads, kv_heads, dim, capacity, kept, _IN_RING), mx.float16, True
    )
    queries = mx.random.normal((1, heads, 1, dim), key=mx.random.key(1)).astype(mx.float16)
    stock = [mx.random.normal((1, kv_heads, rows, dim), key=mx.random.key(i)).astype(mx.float16) for i in (2, 3)]
    mx.eval(qkv, keys, values, recent, step, form, queries, stock)
    read = 2 * kv_heads * dim * rows * 2
    parts = (heads * (dim + 2)) * 4
    ring = 2 * kv_heads * RECENT * dim * 2

    def ours(keys: mx.array, values: mx.array) -> mx.array:
        return ATTEND_DECODE(qkv, keys, values, recent, step, form)[0]

    def sdpa(keys: mx.array, values: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=dim**-0.5)

    splits = splits_of(ours(keys, values), heads, dim)
    return {
        "russet": Side(calls(ours, fresh([keys, values])), read + 2 * ring + splits * parts, kernels=(ATTEND_DECODE,)),
        "mlx": Side(calls(sdpa, fresh(stock)), read + 2 * queries.nbytes),
    }


def cases() -> Iterator[Case]:
    """The five kernels of a layer and the head for every shape, attention at every context."""
    done: set[tuple[int, int, int]] = set()
    for shape, bits in _DECODED:
        config = read_decoder(SHAPES[shape])
        spec, hidden = config.layers[0], config.hidden_dim
        name, q = f"layer {shape} {bits}-bit", spec.heads * spec.head_dim
        yield Case(f"{name} qkv", partial(normed, q + 2 * spec.kv_heads * spec.head_dim, hidden, bits))
        yield Case(f"{name} out", partial(_merged, hidden, spec, bits))
        yield Case(f"{name} gate/up", partial(normed, 2 * spec.ffn_dim, hidden, bits, spec.activation))
        yield Case(f"{name} down", partial(added, hidden, spec.ffn_dim, bits))
        yield Case(f"{name} head", partial(normed, config.vocab_size, hidden, bits))
        heads = (spec.heads, spec.kv_heads, spec.head_dim)
        for rows in () if heads in done else _CONTEXTS:
            yield Case(f"attend {shape} {rows} rows", partial(attend, *heads, rows))
        done.add(heads)


def _merged(hidden: int, spec: LayerSpec, bits: int) -> dict[str, Side]:
    """`merged` with as many parts as attention over the longest context makes."""
    keys = mx.zeros((1, spec.kv_heads, _CONTEXTS[-1], spec.head_dim), dtype=mx.float16)
    return merged(hidden, spec.heads, spec.head_dim, plan(backend(), spec.heads, keys).splits, bits)
