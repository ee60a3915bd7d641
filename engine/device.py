"""What this machine computes on, and what follows from it: number format, memory, chunk of prefill."""

from __future__ import annotations

import os
from functools import cache

import mlx.core as mx

_AMPLE = 32e9  # bytes; 2048 more rows of a 7B model take about 0.6 GB
_PLENTY = 48e9  # not in use; 16384 rows of a 7B model took 10 GB more than 2048 on an H200


@cache
def on_gpu() -> bool:
    """Whether MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device().type == mx.DeviceType.gpu


@cache
def memory_bytes() -> int:
    """Memory that a model may use: what Metal recommends, the CUDA device's, or the machine's."""
    info = mx.device_info() if on_gpu() else {}
    for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if isinstance(info.get(key), int):
            return int(info[key])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def wire_memory() -> None:
    """On Apple silicon, keep the weights resident while generating, as far as the system recommends."""
    if mx.metal.is_available():
        mx.set_wired_limit(memory_bytes())


def prefill_chunk(packed: bool = False) -> int:
    """Prompt rows computed at once: enough to fill the device, few enough to bound activations.

    Measured with SmolLM2-135M: see docs/benchmarks.md. Packed weights are expanded once a chunk (models/expansion.py),
    so a GPU with memory to spare takes more rows then. A CUDA GPU waits for the host between chunks and runs 16384 rows
    of a 7B shape in 473 ms at once, in 497 by 2048.
    """
    if not on_gpu():
        return 512
    if mx.cuda.is_available() and memory_bytes() - mx.get_active_memory() >= _PLENTY:
        return 16384
    return 4096 if packed and memory_bytes() >= _AMPLE else 2048
