"""Sentences and cells that the tables of several benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from russet.bench.stats import Ratio, Summary
from russet.engine.storage import readable_bytes


def model_line(found: dict[str, Any]) -> str:
    """The model and its weights in a sentence."""
    sha256 = found["sha256"]
    return f"Model: {found['name']}, {f'sha256 {sha256[:12]}' if sha256 else 'random weights'}."


def machine_line(found: dict[str, Any]) -> str:
    """Machine and versions in a sentence; what is not known, or was not recorded by an earlier version, is left out."""
    machine = [
        found["cpu"] or "unknown CPU",
        f"{found['cores']} cores",
        f"{readable_bytes(found['memory_bytes'])} memory",
    ]
    if found["gpu"]:
        cores = f" with {found['gpu_cores']} cores," if found.get("gpu_cores") else ""
        machine.insert(0, f"{found['gpu']}{cores} with {readable_bytes(found['gpu_memory_bytes'])}")
    machine += [found[key] for key in ("machine_model", "power_mode", "power_source") if found.get(key)]
    threads = found["blas_threads"]
    russet = f"Russet {found['russet']}" + (f" ({found['git']})" if found["git"] else "")
    software = [found["os"], f"Python {found['python']}", russet, f"MLX {found['mlx']}"]
    if found["mlx-lm"]:
        software.append(f"mlx-lm {found['mlx-lm']}")
    if found["blas"]:
        software.append(f"BLAS {found['blas']}" + (f" (threads: {threads})" if threads else ""))
    return f"Machine: {', '.join(machine)}; {', '.join(software)}; load {found['load_average']:.1f} at the start."


def spread_cell(found: Summary, digits: int) -> str:
    """Median (lowest–highest)."""
    return f"{found.median:.{digits}f} ({found.lowest:.{digits}f}–{found.highest:.{digits}f})"


def ratio_cell(found: Ratio) -> str:
    """Ratio of medians (lowest–highest of a round)."""
    return f"{found.median:.2f}x ({found.lowest:.2f}–{found.highest:.2f})"


def seconds_cell(value: float, like: float | None = None) -> str:
    """Seconds with about three digits that say something, in one unit for a whole column; as many as `like` has."""
    size = value if like is None else like
    return f"{value:.1f}" if size >= 10 else f"{value:.3f}" if size >= 0.1 else f"{value:.4f}"


def by_layer(layer_tokens: Sequence[float]) -> str:
    """Tokens computed a layer, layers with as many taken together."""
    parts, start = [], 0
    for tokens, group in groupby(layer_tokens):
        end = start + len(list(group))
        layers = f"layers {start}–{end - 1}" if end - start > 1 else f"layer {start}"
        parts.append(f"{tokens:.0f} in {layers}")
        start = end
    return ", ".join(parts)
