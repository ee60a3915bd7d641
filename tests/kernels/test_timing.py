"""The arithmetic of bench/kernels.py, on what a CPU can run; no time is judged."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.bench import kernels as bench
from russet.bench.stats import Summary
from russet.engine.errors import InvalidOptionError


def test_a_line_says_what_was_reached():
    timing = bench.KernelTiming("q2", Summary((2e-6, 1e-6, 3e-6)), Summary((4e-6,)), 2_000_000, 3_000_000, 4e12)
    assert timing.line() == "q2: 2.0 us, 1000 GB/s (25% of a copy's); MLX 4.0 us, 750 GB/s"


@pytest.mark.parametrize(("group", "scales", "stock"), [(0, 32, 2 * 32 * 1), (64, 2 * 32, 2 * 32 * 2)])
def test_bytes_are_those_that_each_reads(monkeypatch, group, scales, stock):
    monkeypatch.setattr(bench, "backend", lambda: "cuda")
    monkeypatch.setattr(bench, "_WEIGHT_BYTES", 1 << 12)
    monkeypatch.setattr(bench, "_COPY_BYTES", 1 << 12)
    timing = bench.q2_matvec_timing(32, 128, 2, group, mx.float32)
    packed = 32 * 128 // 4
    assert timing.ours_bytes == packed + 4 * scales
    assert timing.stock_bytes == packed + 4 * stock
    assert len(timing.ours.values) == len(timing.stock.values) == bench._ROUNDS
    assert timing.copy_bytes_per_s > 0


def test_without_a_gpu_there_is_nothing_to_time(monkeypatch):
    monkeypatch.setattr(bench, "backend", lambda: None)
    with pytest.raises(InvalidOptionError, match="timed on a GPU"):
        bench.q2_matvec_timing(32, 128, 2, 64)
