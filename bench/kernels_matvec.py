"""Timed: matrix-vector products, beside MLX's operations for the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx

from russet.bench.kernels_clock import Case, Side, calls, fresh
from russet.engine.device import on_gpu
from russet.kernels.attend_reference import merge, random_parts
from russet.kernels.base import Kernel
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import Format
from russet.kernels.q2_matvec import LANES, TILES, affine, q2_matvec, random_inputs
from russet.kernels.residual_matvec import merge_matvec, residual_matvec
from russet.kernels.sheet import Form, parts_of, random_sheet
from russet.models.activations import gated
from russet.models.config import Activation

EPS = 1e-5
DTYPE = mx.float16
Product = Callable[..., mx.array]


def kind_of(bits: int) -> Format:
    """How weights of `bits` are packed here: balanced at 2 bits, MLX's affine packing above, groups of 64."""
    return Format(16, 0, False) if bits >= 16 else Format(bits, 64, bits == 2)


def stock_product(kind: Format) -> Product:
    """x [R, K] times rows, scales and offsets by MLX's operation; dense rows come alone."""
    if kind.bits >= 16:
        return lambda x, w: x @ w.T
    return lambda x, w, scales, offsets: mx.quantized_matmul(x, w, scales, offsets, True, kind.group, kind.bits)


def stock_rows(kind: Format, w: mx.array, scales: mx.array, offsets: mx.array) -> list[mx.array]:
    """A kernel's operands as `stock_product` takes them."""
    if kind.bits >= 16:
        return [w]
    return [w, scales, -1.5 * scales if kind.balanced else offsets]


def q2(rows: int, n: int, k: int, group: int) -> dict[str, Side]:
    """x [rows, k] times balanced 2-bit w [n, k]; MLX has no group 0 and gets groups of 128."""
    x, w, scales = random_inputs(rows, n, k, group, DTYPE, DTYPE)
    wide, biases, stock_group = affine(w, scales)
    stock = [w, mx.contiguous(wide.astype(DTYPE)), mx.contiguous(biases.astype(DTYPE))]
    mx.eval(x, stock)
    ends = x.nbytes + rows * n * DTYPE.size
    return {
        "russet": Side(
            calls(lambda w, scales: q2_matvec(x, w, scales), fresh([w, scales])),
            w.nbytes + scales.nbytes + ends,
            kernels=(TILES, LANES),
        ),
        "mlx": Side(
            calls(lambda w, s, b: mx.quantized_matmul(x, w, s, b, True, stock_group, 2), fresh(stock)),
            sum(array.nbytes for array in stock) + ends,
        ),
    }


def normed(n: int, k: int, bits: int, activation: Activation | None = None) -> dict[str, Side]:
    """RMS norm of one row and a product with w [n, k]; with an activation, the FFN's gate and up rows."""
    form = Form(k, kind_of(bits), DTYPE, gains=1)
    kernel, h = norm_matvec(form, EPS, activation), mx.random.normal((k,), key=mx.random.key(1))
    act = gated(activation, compiled=on_gpu()) if activation else None
    times = stock_product(form.kind)

    def stock(gain: mx.array, *rows: mx.array) -> mx.array:
        y = times(mx.fast.rms_norm(x, gain, EPS), *rows)
        return act(*mx.split(y, 2, axis=-1)) if act else y

    x = h[None].astype(DTYPE)
    mx.eval(h, x)
    return _sides(form, n, kernel, lambda sheet: kernel(h, sheet)[0], stock, gain=True)


def added(n: int, k: int, bits: int) -> dict[str, Side]:
    """A product of one row with w [n, k], and the residual added."""
    form = Form(k, kind_of(bits), DTYPE)
    kernel, times = residual_matvec(form, True), stock_product(form.kind)
    a, residual = mx.random.normal((k,), key=mx.random.key(1)), mx.random.normal((n,), key=mx.random.key(2))
    x, r = a[None].astype(DTYPE), residual[None].astype(DTYPE)
    mx.eval(a, residual, x, r)
    return _sides(
        form, n, kernel, lambda sheet: kernel(a, residual, sheet)[0], lambda *rows: r + times(x, *rows), gain=False
    )


def merged(n: int, heads: int, dim: int, splits: int, bits: int) -> dict[str, Side]:
    """Attention's heads put together from `splits` parts, times w [n, heads dim], and the residual added.

    MLX's side starts from the heads, since its attention puts them together.
    """
    form = Form(heads * dim, kind_of(bits), DTYPE)
    kernel, times = merge_matvec(form, True, heads), stock_product(form.kind)
    parts, residual = random_parts(splits, heads, dim), mx.random.normal((n,), key=mx.random.key(2))
    x, r = merge(parts, heads, dim)[None].astype(DTYPE), residual[None].astype(DTYPE)
    mx.eval(parts, residual, x, r)
    return _sides(
        form, n, kernel, lambda sheet: kernel(parts, residual, sheet)[0], lambda *rows: r + times(x, *rows), gain=False
    )


def cases() -> Iterator[Case]:
    """2-bit and 4-bit products of 4096 -> 14336, the FFN's width in Llama-3-8B."""
    for rows in (1, 4, 8):
        for group in (64, 0):
            yield Case(f"q2 4096->14336 rows {rows} group {group}", partial(q2, rows, 14336, 4096, group))
    for bits in (2, 4):
        yield Case(f"matvec norm 4096->14336 {bits}-bit", partial(normed, 14336, 4096, bits))
        yield Case(f"matvec residual 4096->14336 {bits}-bit", partial(added, 14336, 4096, bits))


def _sides(form: Form, n: int, kernel: Kernel, ours: Product, stock: Product, gain: bool) -> dict[str, Side]:
    """Both sides of a product with one sheet of n rows."""
    sheet = random_sheet(form, n)
    parts = parts_of(form, sheet)
    rows = [*(parts.gains if gain else ()), *stock_rows(form.kind, *parts.rows)]
    ends = 4 * (form.k + n)
    return {
        "russet": Side(calls(ours, fresh([sheet])), sheet.nbytes + ends, kernels=(kernel,)),
        "mlx": Side(calls(stock, fresh(rows)), sum(array.nbytes for array in rows) + ends // 2),
    }
