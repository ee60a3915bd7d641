"""Balanced 2-bit weights: levels {-1.5, -0.5, 0.5, 1.5} times a scale, for training and for the model folder.

The levels are those of Apple's on-device model (arXiv 2507.13575): without a zero, training is smoother than with
{-2, -1, 0, 1}. Gradients go straight through the rounding (arXiv 1308.3432), and to the scale as in LSQ (1902.08153).

weights  [N, K] float32
scales   [N, K / G] with G of 32, 64 or 128, or [N, 1] for one scale a row; float32
codes    [N, K] uint32, 0 to 3; the level is code - 1.5
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from russet.engine.errors import InvalidOptionError

GROUPS = (0, 32, 64, 128)
"""Weights that share a scale; 0 is a whole row."""

SMALLEST_SCALE = 2.0**-12
"""Keeps float16's low mantissa bits where they can be cleared, and groups of zeros away from a division by zero."""

_TRIED = [i / 80 for i in range(16, 81)]
"""Scales that are tried, as shares of the one that just reaches the largest weight."""


def check_group(group: int, width: int) -> int:
    """Weights a scale for rows of `width`; raises InvalidOptionError for groups that the layout does not have."""
    if group not in GROUPS:
        raise InvalidOptionError(
            f"The group size is {group}; it must be {', '.join(map(str, GROUPS))} (0: a whole row)."
        )
    if width % 16:
        raise InvalidOptionError(f"Rows of {width} weights do not fill words of 16; no group size suits them.")
    if group and width % group:
        raise InvalidOptionError(
            f"Rows of {width} weights do not divide into groups of {group}; take {_fitting(width)}."
        )
    return group or width


def _fitting(width: int) -> str:
    return "".join(f"{group}, or " for group in GROUPS if group and width % group == 0) + "0 for a scale a row"


def stored_scales(scales: mx.array) -> mx.array:
    """Scales as float16 can hold them with the two low mantissa bits clear, so that -1.5 of them is exact as well.

    MLX's affine form keeps that product as the offset of a group; with these scales it stands for the same levels.
    """
    bits = mx.maximum(scales, SMALLEST_SCALE).astype(mx.float16).view(mx.uint16)
    return ((bits + 2) & 0xFFFC).view(mx.float16)


def codes(weights: mx.array, scales: mx.array) -> mx.array:
    """The nearest level of every weight."""
    grouped = _grouped(weights, scales) / scales[..., None]
    return mx.clip(mx.floor(grouped) + 2, 0, 3).astype(mx.uint32).reshape(weights.shape)


def levels(weights: mx.array, scales: mx.array) -> mx.array:
    """The weights that `codes` stand for."""
    return ((_grouped(codes(weights, scales).astype(mx.float32), scales) - 1.5) * scales[..., None]).reshape(
        weights.shape
    )


@mx.custom_function
def quantize(weights: mx.array, scales: mx.array) -> mx.array:
    """`levels`, whose gradient goes straight through the rounding.

    A weight between the outermost levels' ends (2 scales) gets the gradient of its level and a weight beyond none. A
    scale gets the rounding error of each of its weights in scales, or the outermost level where it is beyond.
    """
    return levels(weights, scales)


@quantize.vjp
def _quantize_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
    weights, scales = primals
    position = _grouped(weights, scales) / scales[..., None]
    inside = mx.abs(position) < 2
    level = _grouped(output, scales) / scales[..., None]
    passed = _grouped(cotangent, scales)
    to_scales = (passed * (level - mx.where(inside, position, 0))).sum(-1)
    return mx.where(inside, passed, 0).reshape(weights.shape), to_scales


@mx.custom_function
def store(scales: mx.array) -> mx.array:
    """`stored_scales` in float32, with the gradient of the scales themselves."""
    return stored_scales(scales).astype(mx.float32)


@store.vjp
def _store_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent


def nearest_scales(weights: mx.array, group: int) -> mx.array:
    """The scales with the least squared error of `levels`: a grid first, then Lloyd's step between its codes."""
    width = check_group(group, weights.shape[1])
    grouped = weights.astype(mx.float32).reshape(weights.shape[0], -1, width)
    widest = mx.abs(grouped).max(axis=-1) / 1.5
    best, least = widest, mx.full(widest.shape, mx.inf)
    for share in _TRIED:
        scales = mx.maximum(widest * share, SMALLEST_SCALE)
        error = mx.square(levels(weights, scales) - weights).reshape(grouped.shape).sum(-1)
        best, least = mx.where(error < least, scales, best), mx.minimum(error, least)
        mx.eval(best, least)
    for _ in range(4):
        level = _grouped(codes(weights, best).astype(mx.float32), best) - 1.5
        best = mx.maximum((level * grouped).sum(-1) / mx.square(level).sum(-1), SMALLEST_SCALE)
    return best


def pack(values: mx.array) -> mx.array:
    """Codes [N, K] as MLX lays out 2 bits: [N, K / 16] uint32, code i of a word at its bits 2i."""
    shifts = mx.arange(0, 32, 2, dtype=mx.uint32)
    return (values.reshape(values.shape[0], -1, 16) << shifts).sum(axis=-1).astype(mx.uint32)


def _grouped(weights: mx.array, scales: mx.array) -> mx.array:
    """[N, K] -> [N, groups, K / groups]."""
    return weights.reshape(*scales.shape, -1)
