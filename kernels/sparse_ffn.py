"""A gated FFN that leaves out the neurons whose activation is zero, in two launches for up to 16 rows.

    a = act(gate(n)) * up(n) where |act(gate(n))| > threshold, else 0;   n = x, or RMS norm of x
    y = residual + down(a)

x, residual  [R, K] and [R, D], R from 1 to 16, or [K] and [D]; float32, or the type of the weights or of their scales;
             starting on a 16-byte boundary
gain         [K] the norm's weight, in the type of the weights or of their scales, or none: x is taken as it is
w            rows as in packed.py: [2 F, K], gate rows first; and [F, D], down rows by neuron, the transpose of what
             checkpoints hold, so that groups run along the outputs. K and D are multiples of 64, F is 8 at least
settings     [8] float32: the norm's epsilon, the threshold, zeros
a, y         [R, F] and [R, D], or [F] and [D], in x's type; a starts on such a boundary too

An up row is read only if some row of x makes its neuron active, and so is a down row: the rows of a step share the
active neurons (aggregated sparsity, Mirzadeh et al. 2023, arXiv 2310.04564). Nothing is predicted: the gate is dense,
so with ReLU and threshold 0 the result is the dense FFN's. A row's result does not depend on the rows beside it.
Products and sums are float32, in an order that the shapes decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product

import mlx.core as mx
import numpy as np

from russet.kernels.backend import CORES, Backend
from russet.kernels.base import Inputs, Kernel, Launch
from russet.kernels.matvec_launch import chunk
from russet.kernels.packed import Format, dense_rows, format_of, is_none, none, random_rows, value_type
from russet.models.activations import gated
from russet.models.config import Activation

MAX_ROWS = 16

_ACT: dict[Activation, int] = {"silu": 1, "gelu_tanh": 2, "relu": 3, "gelu": 4}
_LISTED_BYTES = 22 << 10
_LISTED_EACH = 24
_WIDEST = 8
_STREAMS = 2
_MOST: dict[Backend, int] = {"cuda": 64, "metal": 16}
"""Neurons of a threadgroup, at most."""
_TOLERANCE = {mx.float16: 2e-3, mx.bfloat16: 1.6e-2, mx.float32: 2e-5}


def settings(eps: float, threshold: float = 0.0) -> mx.array:
    """The last input of `gate_up`; Metal passes shorter arrays in another address space."""
    return mx.array(np.array([eps, threshold, 0, 0, 0, 0, 0, 0], np.float32))


@cache
def gate_up(activation: Activation) -> Kernel:
    """The first kernel for rows: x -> a."""
    return _first_kernel(activation, "gate_up", "sparse_rows.h", _launch_gate_up, _examples_gate_up)


@cache
def gate_up_vector(activation: Activation) -> Kernel:
    """The first kernel for one vector x [K] in float32, always with a norm: decoding's."""
    return _first_kernel(activation, "gate_vector", "counts.h", _launch_gate_vector, _examples_gate_vector)


def _first_kernel(
    activation: Activation,
    name: str,
    header: str,
    launch: Callable[..., Launch],
    examples: Callable[[Backend], Iterator[Inputs]],
) -> Kernel:
    return Kernel(
        name=f"sparse_{name}_{activation}",
        body=f"sparse_{name}.metal",
        headers=("matvec.h", "activations.h", header),
        inputs=("x", "gain", "w", "scales", "offsets", "settings"),
        outputs=("out",),
        reference=partial(_gate_up_reference, activation),
        launch=partial(launch, activation),
        sample=_sample_gate_up,
        examples=examples,
        tolerance=_TOLERANCE,
    )


def _gate_up_reference(activation: Activation, x: mx.array, gain: mx.array, *rest: mx.array) -> list[mx.array]:
    *rows, chosen = rest
    wide = x.astype(mx.float32)
    if not is_none(gain):
        wide = wide * mx.rsqrt(mx.mean(wide * wide, -1, keepdims=True) + chosen[0]) * gain.astype(mx.float32)
    gate, up = mx.split(wide @ dense_rows(x.shape[-1], *rows).T, 2, axis=-1)
    gate = gated(activation, compiled=False)(gate, mx.ones((1,)))
    # Weights of neurons that are left out may be anything.
    return [mx.where(mx.abs(gate) <= chosen[1], 0.0, gate * up).astype(x.dtype)]


def _down_reference(a: mx.array, residual: mx.array, *rows: mx.array) -> list[mx.array]:
    weights = dense_rows(residual.shape[-1], *rows)
    used = mx.any(a.reshape(-1, a.shape[-1]) != 0, axis=0)
    y = a.astype(mx.float32) @ mx.where(used[:, None], weights, 0.0)
    return [(residual.astype(mx.float32) + y).astype(a.dtype)]


def _launch_gate_up(activation: Activation, target: Backend, x: mx.array, gain: mx.array, *rest: mx.array) -> Launch:
    w, scales, offsets, _ = rest
    kind, neurons, rows = format_of(x.shape[-1], w, scales, offsets), w.shape[0] // 2, _rows(_count(x))
    # Packed weights cost more arithmetic on x than bytes, so more outputs share it.
    outputs, simdgroups = (2 if kind.bits >= 16 or rows > 2 else 4), 8
    template = (
        ("X", x.dtype),
        ("T", value_type(w, scales)),
        *kind.template,
        ("ROWS", rows),
        ("OUTPUTS", outputs),
        ("NORM", int(not is_none(gain))),
        ("ACT", _ACT[activation]),
        ("LOADS", 1 if rows > 4 else 2 if rows > 2 or kind.bits == 2 else 4),
        ("SIMDGROUPS", simdgroups),
    )
    threads, blocks = 32 * simdgroups, -(-neurons // (outputs * simdgroups))
    return Launch((blocks * threads, 1, 1), (threads, 1, 1), template, ((*x.shape[:-1], neurons),), (x.dtype,))


def _launch_gate_vector(
    activation: Activation, target: Backend, x: mx.array, gain: mx.array, *rest: mx.array
) -> Launch:
    w, scales, offsets, _ = rest
    kind, neurons = format_of(x.shape[-1], w, scales, offsets), w.shape[0] // 2
    wide, held = _wide_held(x.shape[-1], kind.bits)
    simdgroups = wide * (_WIDEST // wide)
    # CUDA's cores go through equal shares together; how many cores an Apple GPU has is not known.
    most = _MOST[target]
    least = -(-neurons // most)
    groups = max(least, min(_STREAMS * CORES, -(-neurons // (simdgroups // wide)))) if target == "cuda" else least
    template = (
        ("T", value_type(w, scales)),
        *kind.template,
        ("WIDE", wide),
        ("HELD", held),
        ("SIMDGROUPS", simdgroups),
        ("MOST", most),
        ("AHEAD", 2),
        ("ACT", _ACT[activation]),
    )
    threads = 32 * simdgroups
    return Launch((groups * threads, 1, 1), (threads, 1, 1), template, ((neurons,),), (x.dtype,))


def _wide_held(k: int, bits: int) -> tuple[int, int]:
    """Simdgroups that share a row, and chunks of it that a lane takes."""
    blocks = -(-k // (32 * chunk(bits)))
    held = -(-blocks // _WIDEST)
    return -(-blocks // held), held


def _launch_down(target: Backend, a: mx.array, residual: mx.array, *weights: mx.array) -> Launch:
    w, scales, offsets = weights
    count, neurons, columns = _count(a), a.shape[-1], residual.shape[-1]
    kind = format_of(columns, w, scales, offsets)
    each = _piece(kind.bits)
    rows = min(_rows(count), 64 // each)
    lanes = 4 if kind.bits == 2 or (kind.bits in (8, 16) and rows > 2) else 8
    # Sums of many rows fill the registers of large threadgroups; small ones leave room for other kernels.
    simdgroups = 8 if rows > 2 else 16
    threads = 32 * simdgroups
    neighbours = 4 if neurons % 4 == 0 else 1
    part = threads * neighbours
    windows = -(-neurons // min(_LISTED_BYTES // 2, _LISTED_EACH * threads))
    template = (
        *_types(a, w, scales, kind),
        ("ROWS", rows),
        ("LANES", lanes),
        ("LOADS", 4 if rows <= 2 else 2),
        ("NEIGHBOURS", neighbours),
        ("EACH_LISTED", -(-neurons // (windows * part))),
        ("SIMDGROUPS", simdgroups),
    )
    grid = (-(-columns // (lanes * each)) * threads, -(-count // rows), 1)
    return Launch(grid, (threads, 1, 1), template, (residual.shape,), (a.dtype,))


def _types(x: mx.array, w: mx.array, scales: mx.array, kind: Format) -> tuple[tuple[str, object], ...]:
    return (("X", x.dtype), ("T", value_type(w, scales)), *kind.template, ("VECTOR", int(x.ndim == 1)))


def _piece(bits: int) -> int:
    """Weights that a lane takes at once, as in sparse_rows.h."""
    return {32: 4, 2: 16}.get(bits, 8)


def _count(x: mx.array) -> int:
    return 1 if x.ndim == 1 else x.shape[0]


def _rows(count: int) -> int:
    """The rows that a variant is made for."""
    return next(rows for rows in (1, 2, 4, 8, MAX_ROWS) if rows >= count)


def random_gate_up(
    rows: int, k: int, neurons: int, kind: Format, x_type: mx.Dtype, dtype: mx.Dtype, norm: bool = True
) -> Inputs:
    """Random inputs of the first kernel, the same ones each time; 0 rows give a vector x."""
    keys = mx.random.split(mx.random.key(rows * k + neurons), 2)
    gain = mx.random.uniform(0.5, 1.5, (k,), key=keys[0]).astype(dtype) if norm else none(dtype)
    x = mx.random.normal((rows, k) if rows else (k,), key=keys[1]).astype(x_type)
    return [x, gain, *random_rows(2 * neurons, k, kind, dtype), settings(1e-5)]


def random_down(rows: int, neurons: int, columns: int, kind: Format, x_type: mx.Dtype, dtype: mx.Dtype) -> Inputs:
    """Random inputs of the second kernel, the same ones each time; at most half of the neurons are active."""
    keys = mx.random.split(mx.random.key(rows * neurons + columns), 3)
    shape = (rows,) if rows else ()
    a = mx.maximum(mx.random.normal((*shape, neurons), key=keys[0]), 0)
    a = a * (mx.random.uniform(shape=(neurons,), key=keys[1]) < 0.5)
    residual = mx.random.normal((*shape, columns), key=keys[2]).astype(x_type)
    return [a.astype(x_type), residual, *random_rows(neurons, columns, kind, dtype)]


def _sample_gate_up(x: mx.array, gain: mx.array, *rest: mx.array) -> Inputs:
    w, scales, offsets, _ = rest
    kind, rows = format_of(x.shape[-1], w, scales, offsets), x.shape[0] if x.ndim == 2 else 0
    k = 640
    if not rows:
        full = x.shape[-1]
        shorter = (k for k in range(128, full, 128) if _wide_held(k, kind.bits) == _wide_held(full, kind.bits))
        k = next(shorter, full)
    return random_gate_up(rows, k, 40, kind, x.dtype, value_type(w, scales), not is_none(gain))


def _sample_down(a: mx.array, residual: mx.array, *weights: mx.array) -> Inputs:
    w, scales, offsets = weights
    kind, rows = format_of(residual.shape[-1], w, scales, offsets), a.shape[0] if a.ndim == 2 else 0
    return random_down(rows, a.shape[-1], 128, kind, a.dtype, value_type(w, scales))


def _shapes() -> Iterator[tuple[int, Format, mx.Dtype, mx.Dtype]]:
    """Rows, packing and types: decoding's one vector of float32 in every packing, and rows in the common ones."""
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        common = (Format(8 * dtype.size, 0, False), Format(4, 64, False), Format(2, 64, True))
        others = (*(Format(bits, group, False) for bits, group in ((2, 64), (4, 32), (4, 128), (8, 64))),)
        balanced = tuple(Format(2, group, True) for group in (0, 128))
        yield from product((0,), (*common, *others, *balanced), (mx.float32,), (dtype,))
        yield from product((1, 2, 3, 11), common, (dtype,), (dtype,))


def _examples_gate_up(target: Backend) -> Iterator[Inputs]:
    for rows, kind, x_type, dtype in _shapes():
        if rows:
            yield random_gate_up(rows, 640, 40, kind, x_type, dtype, norm=rows == 1)


def _examples_gate_vector(target: Backend) -> Iterator[Inputs]:
    for rows, kind, x_type, dtype in _shapes():
        if not rows:
            yield random_gate_up(0, 640, 40, kind, x_type, dtype)


def _examples_down(target: Backend) -> Iterator[Inputs]:
    for rows, kind, x_type, dtype in _shapes():
        yield random_down(rows, 600, 128, kind, x_type, dtype)


DOWN = Kernel(
    name="sparse_down",
    body="sparse_down.metal",
    headers=("matvec.h", "counts.h", "sparse_rows.h"),
    inputs=("a", "residual", "w", "scales", "offsets"),
    outputs=("out",),
    reference=_down_reference,
    launch=_launch_down,
    sample=_sample_down,
    examples=_examples_down,
    tolerance=_TOLERANCE,
)
