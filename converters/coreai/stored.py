"""A model's matrices as the plan stores them; nothing here needs Core AI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from russet.converters.coreai.plan import Layout
from russet.converters.model_tensors import ModelTensors

if TYPE_CHECKING:
    from russet.models.linear import Affine


@dataclass(frozen=True)
class Packed:
    """w = scales * integers + biases over groups of the last axis.

    `integers` uint8, below 2 ** bits; `scales` and `biases` float32. Rows are outputs, or with `turned` inputs.
    """

    integers: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int
    turned: bool = False

    @property
    def outputs(self) -> int:
        return self.integers.shape[1 if self.turned else 0]


Stored = np.ndarray | Packed
"""A matrix: float32 [out, in], or packed."""


def stored(model: ModelTensors, role: str, layout: Layout) -> Stored:
    """The matrix of a role; one that the model has packed in the layout's bits is taken over number for number."""
    if layout.bits is None:
        return model.dense(role)
    bits, group = model.stored_layout(role)
    if bits == layout.bits:
        source = model.stored(role)
        assert not isinstance(source, np.ndarray)
        return _unpacked(source, model.by_neuron(role), one_scale=not group)
    import mlx.core as mx

    from russet.models.linear import Affine

    dense = mx.array(model.dense(role))
    return _unpacked(Affine(*mx.quantize(dense, layout.group, layout.bits), layout.group, layout.bits))


def joined(parts: list[Stored]) -> Stored | None:
    """Matrices of one input as one, where they are stored alike."""
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    if len(dense) == len(parts):
        return np.concatenate(dense)
    packed = [part for part in parts if isinstance(part, Packed)]
    alike = len({(part.bits, part.integers.shape[1] // part.scales.shape[1]) for part in packed}) == 1
    if dense or not alike:
        return None
    fields = ([getattr(part, name) for part in packed] for name in ("integers", "scales", "biases"))
    return Packed(*(np.concatenate(arrays) for arrays in fields), packed[0].bits)  # pyright: ignore[reportCallIssue]


def outputs(part: Stored) -> int:
    """How many outputs a matrix has."""
    return part.shape[0] if isinstance(part, np.ndarray) else part.outputs


def _unpacked(affine: Affine, turned: bool = False, one_scale: bool = False) -> Packed:
    """The integers apart; with `one_scale` those of a row have one scale, which is repeated in `affine`."""
    words = np.array(affine.weight).astype("<u4", copy=False).view(np.uint8)
    places = [(words >> shift) & (2**affine.bits - 1) for shift in range(0, 8, affine.bits)]
    integers = np.stack(places, axis=-1).reshape(words.shape[0], -1)
    scales, biases = (np.array(x).astype(np.float32) for x in (affine.scales, affine.biases))
    if one_scale:
        scales, biases = scales[:, :1], biases[:, :1]
    return Packed(integers, scales, biases, affine.bits, turned)
