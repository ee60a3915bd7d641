"""Read back what was written and hold it against the source: presence, shapes, values, and a forward pass."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from russet.converters.layout import Plan, Planned, Shard
from russet.converters.quantize import BLOCK_WEIGHTS
from russet.engine.errors import WeightsError
from russet.models.safetensors_file import SafetensorsFile, open_safetensors

if TYPE_CHECKING:
    import mlx.core as mx

    from russet.engine.progress import Progress

# Relative error of rounding once to a format, with room for a second rounding.
ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST_STEP = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}

CLASSES = (
    ("norms", ("norm",)),
    ("embedding", ("embed", "lm_head")),
    ("attention", ("attn",)),
    ("feed-forward", ("mlp", "ffn")),
)


@dataclass
class _Sums:
    """Squares of errors and of values."""

    error: float = 0.0
    value: float = 0.0


def verify_folder(folder: Path, plan: Plan, progress: Progress) -> dict[str, float]:
    """The relative RMS error of each class of tensors (norms, embedding, attention, feed-forward, other).

    Raises WeightsError when a tensor is not what the plan says, or differs from the source by more than its bits
    explain.
    """
    sums: dict[str, _Sums] = defaultdict(_Sums)
    for shard in plan.shards:
        file = open_safetensors(folder / shard.name)
        _check_header(file, shard)
        for tensor in shard.tensors:
            _compare(file, tensor, sums[class_of(tensor.source.name)])
            progress.advance(tensor.nbytes)
    return {name: math.sqrt(s.error / s.value) if s.value else 0.0 for name, s in sums.items()}


def class_of(name: str) -> str:
    """What a tensor belongs to, by its stock name."""
    return next((label for label, marks in CLASSES if any(mark in name for mark in marks)), "other")


def check_forward(folder: Path) -> None:
    """Load the folder as the engine will, and run two tokens; WeightsError unless every logit is finite."""
    import mlx.core as mx

    from russet.models.loading import load_decoder

    decoder = load_decoder(folder)
    logits = decoder.extend(mx.array([[0, 1]]), decoder.new_cache())
    if logits is None or not bool(mx.all(mx.isfinite(logits))):
        raise WeightsError(
            "The converted model answers with numbers that are not finite; convert with --dtype bfloat16."
        )


def _check_header(file: SafetensorsFile, shard: Shard) -> None:
    planned = {part.name: (part.dtype, part.shape) for tensor in shard.tensors for part in tensor.parts}
    written = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    if planned != written:
        raise WeightsError(f"{file.path.name} does not hold the tensors that were to be written; convert again.")


def _compare(file: SafetensorsFile, tensor: Planned, sums: _Sums) -> None:
    """Add up the error of one tensor, some rows at a time, and check each number's."""
    import mlx.core as mx

    source = tensor.source.read()
    parts = [file.read(part.name) for part in tensor.parts]
    count = source.shape[0] if source.ndim > 1 else 1
    step = max(1, BLOCK_WEIGHTS * count // max(1, source.size))
    for start in range(0, count, step):
        cut = (lambda array, start=start: array[start : start + step]) if source.ndim > 1 else (lambda array: array)
        value = cut(source).astype(mx.float32)
        written, allowed = _decoded(value, [cut(part) for part in parts], tensor)
        error = mx.abs(written - value)
        if not bool(mx.all(error <= allowed)):  # so that NaN fails as well
            raise WeightsError(
                f"The tensor {tensor.source.name!r} reads back with an error of {_number(mx.max(error - allowed)):.3g} "
                "beyond what its bits explain; the disk or Russet is at fault, convert again."
            )
        sums.error += _number(mx.sum(error * error))
        sums.value += _number(mx.sum(value * value))
    mx.clear_cache()


def _number(array: mx.array) -> float:
    import numpy as np

    return float(np.asarray(array))


def _decoded(value: mx.array, parts: list[mx.array], tensor: Planned) -> tuple[mx.array, mx.array]:
    """What was written, in float32, and how far each number may be from `value`."""
    import mlx.core as mx

    target = tensor.target
    if target.bits is None:
        stored = target.dtype if target.dtype in ROUNDING else "float32"
        return parts[0].astype(mx.float32), mx.abs(value) * ROUNDING[stored] + SMALLEST_STEP[stored]
    weight, scales, biases = parts[0], parts[1].astype(mx.float32), parts[2].astype(mx.float32)
    written = mx.dequantize(weight, scales, biases, target.group_size, target.bits)
    if target.keep:
        return written, mx.zeros_like(value)
    rounding = ROUNDING[target.dtype]
    # A code is off by one step at most, plus what rounding the step and the offset to 16 bits adds.
    per_group = mx.abs(scales) * (1 + 2**target.bits * rounding) + mx.abs(biases) * rounding
    return written, mx.repeat(per_group, target.group_size, axis=-1) + mx.abs(value) * rounding
