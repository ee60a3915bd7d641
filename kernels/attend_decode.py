"""Attention of one new token: QK-norm, rotation, and softmax attention over cached rows, in one dispatch a layer.

Rows lie in two places: main buffers, and a small ring of recent rows that every step puts out anew with one row more,
for a custom kernel cannot write into its inputs. The rows are divided over S splits, whose partial results `merge`
(or a later kernel) puts together, as in split-KV decoding (Flash-Decoding, Dao et al. 2023).

qkv        float32 [(H + 2 KV) D], the token's raw projections: queries, keys, values; [H D] for `ATTEND_SHARED`
keys       [1, KV, C, D] main buffer, any floating type or int8; D a multiple of 16 from 32 to 256. Also `values`
recent     [2, KV, R, D], keys and values of the ring, in the main buffers' type
step       float32 [8 + 2 P], what is this token's own, from `pack_step`: rows in use of the main buffers, rows in use
           of the ring before this token, the first row to look at in the main buffers and in the ring (attention
           windows), 4 zeros, then P cosines and P sines of the rotation, with its amplitude. Feature i pairs with
           i + P or with its neighbour; the features after 2 P stay. Counts are exact below 2^24.
form       float32 [8], [8 + 2 D] or, for `ATTEND_SHARED`, [8 + D], what is the layer's own, from `pack_form`: the
           norms' epsilon, the softmax scale, 1 if heads are rotated before their norm, 1 if there are norms, P, 1 if
           pairs are neighbours, what a stored key and a stored value are multiplied with, then the weights of the
           queries' RMS norm and those of the keys'

parts      float32 [S H D + 2 S H]: first [S, H, D], each split's own softmax-weighted mean of values, 0 for a split
           without rows; then [S, H, 2], each split's highest score and its sum of exponentials relative to that
recent_out [2, KV, R, D]: the ring with this token's key and value at row step[1]

Few inputs and outputs, for MLX spends about half a microsecond on the host for each.

`ATTEND_DECODE` is for layers that own their rows, `ATTEND_SHARED` for those that read another layer's: it takes that
layer's recent_out as `recent`, where row step[1] is this token's already, and makes none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.kernels.attend_reference import SIMDGROUPS, attend_decode, attend_shared, plan
from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch

RECENT = 32
"""Rows of the ring, as the decoder makes it; the kernels take any number."""


def pack_step(state: tuple[int, int, int, int], cosines_sines: np.ndarray) -> mx.array:
    """`step` from the four counts and the rotation [2, P]."""
    return pack_steps([state], [cosines_sines])[0]


def pack_steps(states: Sequence[tuple[int, int, int, int]], rotations: Sequence[np.ndarray]) -> list[mx.array]:
    """`step` for several tokens, views of one array: a host array takes 80 us on CUDA (an H100), whatever its size."""
    steps = np.zeros((len(states), 8 + rotations[0].size), dtype=np.float32)
    for row, state, rotation in zip(steps, states, rotations, strict=True):
        row[:4], row[8:] = state, rotation.reshape(-1)
    views = list(mx.array(steps))
    mx.async_eval(views)
    return views


def pack_form(
    eps: float,
    scale: float,
    rotate_first: bool,
    pairs: int,
    neighbours: bool,
    key_scale: float,
    value_scale: float,
    q_norm: mx.array | None,
    k_norm: mx.array | None,
) -> mx.array:
    """`form` from a layer's constants and its norms' weights [D], of any floating type.

    Without norms both are None; for `ATTEND_SHARED` `k_norm` is.
    """
    numbers = [eps, scale, rotate_first, q_norm is not None, pairs, neighbours, key_scale, value_scale]
    weights = [norm.astype(mx.float32) for norm in (q_norm, k_norm) if norm is not None]
    return mx.concatenate([mx.array([float(number) for number in numbers]), *weights])


def _launch(target: Backend, owns: bool, qkv: mx.array, keys: mx.array, values: mx.array, recent: mx.array) -> Launch:
    kv_heads, _, dim = keys.shape[1:]
    heads = qkv.size // dim - (2 * kv_heads if owns else 0)
    cut, threads = plan(target, heads, keys), 32 * SIMDGROUPS
    template = (
        ("D", dim),
        ("LANES", cut.lanes),
        ("STEPS", cut.steps),
        ("HEADS", cut.heads),
        ("SIMDGROUPS", SIMDGROUPS),
    )
    shapes, dtypes = ((cut.splits * heads * (dim + 2),),), (mx.float32,)
    if owns:
        shapes, dtypes = (*shapes, tuple(recent.shape)), (*dtypes, recent.dtype)
    return Launch((cut.splits * threads, kv_heads, cut.sets), (threads, 1, 1), template, shapes, dtypes)


@dataclass(frozen=True, slots=True)
class Shape:
    """What random inputs look like; `norm` 0 is none, 1 before the rotation, 2 after it."""

    heads: int
    kv_heads: int
    dim: int
    capacity: int
    kept: int
    recent: int
    norm: int = 1
    rotated: int | None = None
    neighbours: bool = False
    first: int = 0
    first_recent: int = 0


def random_inputs(shape: Shape, dtype: mx.Dtype, owns: bool) -> Inputs:
    """Random inputs with rows in `dtype`, the same ones each time.

    Rows that are not in use hold NaN (100 if int8), and 100 in the ring, which is copied whole. The scale of values
    makes what is mixed weigh as much as the statistics in the norm of `parts`.
    """
    keys = mx.random.split(mx.random.key(shape.capacity + shape.dim), 5)
    kv_heads, dim, int8 = shape.kv_heads, shape.dim, dtype == mx.int8
    main = (1, kv_heads, shape.capacity, dim)
    buffers = [_rows(main, shape.kept, dtype, 100.0 if int8 else math.nan, key) for key in keys[:2]]
    recent = _rows((2, kv_heads, RECENT, dim), shape.recent + (not owns), dtype, 100.0, keys[2])
    pairs = (dim if shape.rotated is None else shape.rotated) // 2
    angles = np.arange(pairs) * 0.7 + 1
    state = (shape.kept, shape.recent, shape.first, shape.first_recent)
    norms = mx.random.uniform(0.5, 1.5, (2, dim), key=keys[3])
    form = pack_form(
        1e-6,
        dim**-0.5,
        shape.norm == 2,
        pairs,
        shape.neighbours,
        0.02 if int8 else 1.0,
        0.5 if int8 else 16.0,
        norms[0] if shape.norm else None,
        norms[1] if shape.norm and owns else None,
    )
    qkv = mx.random.normal(((shape.heads + 2 * kv_heads * owns) * dim,), key=keys[4])
    return [qkv, *buffers, recent, pack_step(state, np.stack([np.cos(angles), np.sin(angles)])), form]


def _rows(shape: tuple[int, ...], used: int, dtype: mx.Dtype, unused: float, key: mx.array) -> mx.array:
    rows = mx.random.normal(shape, key=key) * (40 if dtype == mx.int8 else 1)
    return mx.where((mx.arange(shape[2]) < used)[:, None], rows, unused).astype(dtype)


def _sample(owns: bool, qkv: mx.array, keys: mx.array, *_: mx.array) -> Inputs:
    kv_heads, capacity, dim = keys.shape[1:]
    heads = qkv.size // dim - (2 * kv_heads if owns else 0)
    few = min(kv_heads, 2)
    # Every split has rows: the score of none would hide all else in the norm of `parts`.
    capacity = min(capacity, 2 * plan("metal", heads, keys).round_rows)
    return random_inputs(Shape(heads // kv_heads * few, few, dim, capacity, capacity - 3, 5), keys.dtype, owns)


def _examples(_: Backend, owns: bool) -> Iterator[Inputs]:
    yield random_inputs(Shape(16, 2, 128, 512, 507, 5), mx.int8, owns)
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        for heads, dim in ((1, 128), (4, 256), (3, 64)):
            yield random_inputs(Shape(2 * heads, 2, dim, 512, 507, 5), dtype, owns)


# Sums are in float32; a row that rounds the other way moves the ring by this much at most.
_TOLERANCE = {mx.float32: 5e-4}
_INPUTS = ("qkv", "keys", "values", "recent", "step", "form")

ATTEND_DECODE = Kernel(
    name="attend_decode",
    body="attend_decode.metal",
    headers=("cached_rows.h", "attend.h"),
    inputs=_INPUTS,
    outputs=("parts", "recent_out"),
    reference=attend_decode,
    launch=lambda target, *inputs: _launch(target, True, *inputs[:4]),
    sample=lambda *inputs: _sample(True, *inputs),
    examples=lambda target: _examples(target, True),
    tolerance=_TOLERANCE,
)
ATTEND_SHARED = Kernel(
    name="attend_shared",
    body="attend_shared.metal",
    headers=("cached_rows.h", "attend.h"),
    inputs=_INPUTS,
    outputs=("parts",),
    reference=attend_shared,
    launch=lambda target, *inputs: _launch(target, False, *inputs[:4]),
    sample=lambda *inputs: _sample(False, *inputs),
    examples=lambda target: _examples(target, False),
    tolerance=_TOLERANCE,
)
