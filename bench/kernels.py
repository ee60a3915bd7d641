"""What a kernel takes on this GPU beside MLX's own operation, and the bytes a second of both beside a copy's.

Calls that do not depend on each other are made first and evaluated together, each with weights of its own, more than
caches hold. The result is time a call at full load and not the latency of a lone call. What MLX spends on the host to
launch a kernel bounds it from below: a profiler tells the GPU's own time
(`ncu --clock-control none --metrics gpu__time_duration.sum`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from russet.bench.stats import Summary
from russet.engine.errors import InvalidOptionError
from russet.kernels.backend import backend

# Larger than the last-level cache of any device in reach, so that weights come from memory.
_WEIGHT_BYTES = 256 << 20
_COPY_BYTES = 1 << 30
_ROUNDS = 7

Call = Callable[[], mx.array]


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """Seconds a call of ours and of MLX's, in alternating rounds, and the bytes that each has to read."""

    name: str
    ours: Summary
    stock: Summary
    ours_bytes: int
    stock_bytes: int
    copy_bytes_per_s: float

    def line(self) -> str:
        ours, stock = self.ours.median, self.stock.median
        share = self.ours_bytes / ours / self.copy_bytes_per_s
        return (
            f"{self.name}: {ours * 1e6:.1f} us, {self.ours_bytes / ours / 1e9:.0f} GB/s ({share:.0%} of a copy's); "
            f"MLX {stock * 1e6:.1f} us, {self.stock_bytes / stock / 1e9:.0f} GB/s"
        )


def q2_matvec_timing(n: int, k: int, rows: int, group: int, dtype: mx.Dtype = mx.float16) -> KernelTiming:
    """Time x [rows, k] times 2-bit w [n, k] against quantized_matmul with the same group (128 for group 0).

    Raises InvalidOptionError where MLX has no GPU.
    """
    if backend() is None:
        raise InvalidOptionError("Kernels are timed on a GPU, and MLX has none here.")
    from russet.kernels.q2_matvec import affine, q2_matvec, random_inputs

    x, w, scales = random_inputs(rows, n, k, group, dtype, dtype)
    weights = [w ^ mx.array(i, mx.uint32) for i in range(max(2, _WEIGHT_BYTES // w.nbytes))]
    wide, biases, stock_group = affine(w, scales)
    wide, biases = mx.contiguous(wide.astype(dtype)), mx.contiguous(biases.astype(dtype))
    mx.eval(x, scales, wide, biases, weights)
    ours = [lambda w=w: q2_matvec(x, w, scales) for w in weights]
    stock = [lambda w=w: mx.quantized_matmul(x, w, wide, biases, True, stock_group, 2) for w in weights]
    ours_s, stock_s = _alternate(ours, stock)
    return KernelTiming(
        f"q2_matvec {k}->{n}, {rows} rows, group {group or 'none'}, {str(dtype).rpartition('.')[2]}",
        ours_s,
        stock_s,
        w.nbytes + scales.nbytes,
        w.nbytes + wide.nbytes + biases.nbytes,
        copy_bytes_per_s(),
    )


def copy_bytes_per_s() -> float:
    """Bytes a second, read and written, of an elementwise pass over 1 GiB."""
    source = mx.random.normal((_COPY_BYTES // 4,))
    mx.eval(source)
    best = min(_seconds([lambda: source * 2.0]) for _ in range(_ROUNDS))
    return 2 * source.nbytes / best


def _alternate(ours: Sequence[Call], stock: Sequence[Call]) -> tuple[Summary, Summary]:
    # The first round compiles.
    rounds = [(_seconds(ours), _seconds(stock)) for _ in range(_ROUNDS + 1)][1:]
    return (
        Summary(tuple(a / len(ours) for a, _ in rounds)),
        Summary(tuple(b / len(stock) for _, b in rounds)),
    )


def _seconds(calls: Sequence[Call]) -> float:
    results = [call() for call in calls]
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(results)
    return time.perf_counter() - start
