"""Timed: an FFN that leaves zeros out, beside our own dense kernels and MLX's operations on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
import numpy as np

from russet.bench.kernels_clock import Case, Side, calls, fresh
from russet.bench.kernels_matvec import DTYPE, EPS, kind_of, stock_product, stock_rows
from russet.engine.device import on_gpu
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import Format, dense_rows, is_none, none, random_rows
from russet.kernels.residual_matvec import residual_matvec
from russet.kernels.sheet import Form, Parts, make_sheet
from russet.kernels.sparse_ffn import DOWN, gate_up_vector, settings
from russet.models.activations import gated
from russet.models.config import Activation

Rows = tuple[mx.array, mx.array, mx.array]


def sparse_ffn(hidden: int, neurons: int, bits: int, zeros: int) -> dict[str, Side]:
    """One row through an FFN, `zeros` per cent of whose neurons are inactive: ReLU's, or with 0 SiLU's."""
    kind = kind_of(bits)
    activation: Activation = "relu" if zeros else "silu"
    up_rows = random_rows(2 * neurons, hidden, kind, DTYPE)
    down_rows = random_rows(hidden, neurons, kind, DTYPE)
    by_neuron = random_rows(neurons, hidden, kind, DTYPE)
    keys = mx.random.split(mx.random.key(zeros), 2)
    h, gain = mx.random.normal((hidden,), key=keys[0]), mx.random.uniform(0.5, 1.5, (hidden,), key=keys[1])
    gain = gain.astype(DTYPE)
    threshold = _threshold(h, gain, up_rows, neurons, zeros) if zeros else -1.0
    mx.eval(h, gain, up_rows, down_rows, by_neuron)
    gates, downs = _nbytes(up_rows) // 2, _nbytes(by_neuron)
    ends, share = 4 * (2 * hidden + 2 * neurons) + gain.nbytes, 1 - zeros / 100
    return {
        "russet": Side(
            calls(partial(_sparse, h, gain, settings(EPS, threshold), activation), fresh([*up_rows, *by_neuron])),
            int(gates + share * (gates + downs)) + ends,
            kernels=(gate_up_vector(activation), DOWN),
        ),
        **_dense(h, gain, up_rows, down_rows, kind, activation, 2 * gates + downs + ends),
    }


def cases() -> Iterator[Case]:
    """Llama-2-7B's FFN."""
    for bits in (16, 4, 2):
        for zeros in (0, 50, 90, 95, 99):
            yield Case(f"sparse 4096/11008 {bits}-bit {zeros}%", partial(sparse_ffn, 4096, 11008, bits, zeros))


def _sparse(h: mx.array, gain: mx.array, chosen: mx.array, activation: Activation, *rows: mx.array) -> mx.array:
    (a,) = gate_up_vector(activation)(h, gain, *rows[:3], chosen)
    return DOWN(a, h, *rows[3:])[0]


def _dense(
    h: mx.array,
    gain: mx.array,
    up_rows: Rows,
    down_rows: Rows,
    kind: Format,
    activation: Activation,
    size: int,
) -> dict[str, Side]:
    """The fused step's two kernels, and MLX's operations."""
    up, down = Form(h.size, kind, DTYPE, gains=1), Form(up_rows[0].shape[0] // 2, kind, DTYPE)
    sheets = [
        make_sheet(up, Parts(*up_rows, none(DTYPE), (gain,))),
        make_sheet(down, Parts(*down_rows, none(DTYPE), ())),
    ]
    project, add = norm_matvec(up, EPS, activation), residual_matvec(down, True)
    act, times, x = gated(activation, compiled=on_gpu()), stock_product(kind), h[None].astype(DTYPE)
    stock = [*stock_rows(kind, *up_rows), *stock_rows(kind, *down_rows)]
    half = len(stock) // 2
    mx.eval(x)

    def ours(up_sheet: mx.array, down_sheet: mx.array) -> mx.array:
        return add(project(h, up_sheet)[0], h, down_sheet)[0]

    def mlx(*rows: mx.array) -> mx.array:
        y = times(mx.fast.rms_norm(x, gain, EPS), *rows[:half])
        return x + times(act(*mx.split(y, 2, axis=-1)), *rows[half:])

    return {
        "russet, dense": Side(calls(ours, fresh(sheets)), size, kernels=(project, add)),
        "mlx, dense": Side(calls(mlx, fresh(stock)), size),
    }


def _threshold(h: mx.array, gain: mx.array, rows: Rows, neurons: int, zeros: int) -> float:
    """What leaves `zeros` per cent of ReLU's outputs out; 0 where as many are zero anyway."""
    gates = dense_rows(h.size, *rows)[:neurons] @ mx.fast.rms_norm(h, gain.astype(mx.float32), EPS)
    return max(0.0, float(np.quantile(np.array(gates), zeros / 100)))


def _nbytes(rows: Rows) -> int:
    return sum(array.nbytes for array in rows if not is_none(array))
