"""Attention of one new token: QK-norm, rotation, and softmax attention over cached rows, in one dispatch a layer.

Rows lie in two places: main buffers, and a small ring of recent rows that every step puts out anew with one row more,
for a custom kernel cannot write into its inputs. The rows are divided over S splits, whose partial results `merge`
(or a later kernel) puts together, as in split-KV decoding (Flash-Decoding, Dao et al. 2023).

qkv        float32 [(H + 2 KV) D], the token's raw projections: queries, keys, values; [H D] for `ATTEND_SHARED`
keys       [1, KV, C, D] main buffer, any floating type or int8; D a multiple of 16 from 32 to 256. Also `values`
recent     [2, KV, R, D], keys and values of the ring, in the main buffers' type
state      int32 [8]: rows in use of the main buffers, rows in use of the ring before this token, then the first row to
           look at in the main buffers and in the ring (attention windows)
rotation   float32, cosines and sines of this token's position, with the amplitude: [2, P] where feature i pairs with
           i + P, [P, 2] where it pairs with its neighbour; the features after 2 P stay
q_norm     [D] weights of the RMS norm, any floating type; another length for none. Also `k_norm`
kv_scales  float32 [8]: what a stored key and a stored value are multiplied with; 1 and 1 unless rows are int8
constants  float32 [8]: the norms' epsilon, the softmax scale, 1 if heads are rotated before their norm

mixed      float32 [S, H, D]: each split's own softmax-weighted mean of values, 0 for a split without rows
stats      float32 [S, H, 2]: each split's highest score, and its sum of exponentials relative to that
recent_out [2, KV, R, D]: the ring with this token's key and value at row state[1]

`ATTEND_DECODE` is for layers that own their rows, `ATTEND_SHARED` for those that read another layer's: it takes that
layer's recent_out as `recent` and neither k_norm nor makes recent_out, so there row state[1] is this token's already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from russet.kernels.attend_reference import SIMDGROUPS, attend_decode, attend_shared, plan, rotation_form
from russet.kernels.backend import Backend
from russet.kernels.base import Inputs, Kernel, Launch

RECENT = 32
"""Rows of the ring, as the decoder makes it; the kernels take any number."""


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
    shapes = ((cut.splits, heads, dim), (cut.splits, heads, 2))
    dtypes = (mx.float32, mx.float32)
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
    int8: bool = False
    first: int = 0
    first_recent: int = 0


def random_inputs(shape: Shape, dtype: mx.Dtype, owns: bool) -> Inputs:
    """Random inputs with norms and rows in `dtype`, the same ones each time.

    Rows that are not in use hold NaN, and 100 in the ring, which is copied whole.
    """
    keys = mx.random.split(mx.random.key(shape.capacity + shape.dim), 5)
    kv_heads, dim = shape.kv_heads, shape.dim
    stored = mx.int8 if shape.int8 else dtype
    main = (1, kv_heads, shape.capacity, dim)
    buffers = [_rows(main, shape.kept, stored, 100.0 if shape.int8 else math.nan, key) for key in keys[:2]]
    recent = _rows((2, kv_heads, RECENT, dim), shape.recent + (not owns), stored, 100.0, keys[2])
    pairs = (shape.rotated or dim) // 2
    angles = mx.arange(pairs) * 0.7 + 1
    rotation = mx.stack([mx.cos(angles), mx.sin(angles)], axis=1 if shape.neighbours else 0)
    norms = mx.random.uniform(0.5, 1.5, (2, dim if shape.norm else 8), key=keys[3]).astype(dtype)
    qkv = mx.random.normal(((shape.heads + 2 * kv_heads * owns) * dim,), key=keys[4])
    state = mx.array([shape.kept, shape.recent, shape.first, shape.first_recent, 0, 0, 0, 0], mx.int32)
    kv_scales = mx.array(([0.02, 0.03] if shape.int8 else [1.0, 1.0]) + [0.0] * 6)
    constants = mx.array([1e-6, dim**-0.5, float(shape.norm == 2)] + [0.0] * 5)
    weights = [norms[0], norms[1]] if owns else [norms[0]]
    return [qkv, *buffers, recent, state, rotation, *weights, kv_scales, constants]


def _rows(shape: tuple[int, ...], used: int, dtype: mx.Dtype, unused: float, key: mx.array) -> mx.array:
    rows = mx.random.normal(shape, key=key) * (40 if dtype == mx.int8 else 1)
    return mx.where((mx.arange(shape[2]) < used)[:, None], rows, unused).astype(dtype)


def _sample(owns: bool, qkv: mx.array, keys: mx.array, *rest: mx.array) -> Inputs:
    kv_heads, capacity, dim = keys.shape[1:]
    heads = qkv.size // dim - (2 * kv_heads if owns else 0)
    few = min(kv_heads, 2)
    rotation, q_norm = rest[3], rest[4]
    pairs, neighbours = rotation_form(rotation)
    capacity = min(capacity, 2 * plan("metal", heads, keys).round_rows)
    int8 = keys.dtype == mx.int8
    shape = Shape(
        heads // kv_heads * few,
        few,
        dim,
        capacity,
        kept=capacity - 3,
        recent=5,
        norm=int(q_norm.shape[0] == dim),
        rotated=2 * pairs,
        neighbours=neighbours,
        int8=int8,
    )
    made = random_inputs(shape, q_norm.dtype if int8 else keys.dtype, owns)
    return [*made[:6], *(array.astype(like.dtype) for array, like in zip(made[6:], rest[4:], strict=True))]


def _examples(target: Backend, owns: bool) -> Iterator[Inputs]:
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        for heads, dim, int8 in ((8, 128, True), (1, 128, False), (4, 256, False), (3, 64, False)):
            yield random_inputs(Shape(2 * heads, 2, dim, 512, 507, 5, int8=int8), dtype, owns)


# Sums are in float32; a row that rounds the other way moves the ring by this much at most.
_TOLERANCE = {mx.float32: 5e-4}
_SHARED_INPUTS = ("qkv", "keys", "values", "recent", "state", "rotation", "q_norm", "kv_scales", "constants")

ATTEND_DECODE = Kernel(
    name="attend_decode",
    body="attend_decode.metal",
    headers=("cached_rows.h", "attend.h"),
    inputs=(*_SHARED_INPUTS[:7], "k_norm", *_SHARED_INPUTS[7:]),
    outputs=("mixed", "stats", "recent_out"),
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
    inputs=_SHARED_INPUTS,
    outputs=("mixed", "stats"),
    reference=attend_shared,
    launch=lambda target, *inputs: _launch(target, False, *inputs[:4]),
    sample=lambda *inputs: _sample(False, *inputs),
    examples=lambda target: _examples(target, False),
    tolerance=_TOLERANCE,
)
