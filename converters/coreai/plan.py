"""What a Core AI package will hold, before anything is read: how each tensor is stored, and its size."""

from __future__ import annotations

from dataclasses import dataclass

from russet.converters.coreml.plan import roles_of
from russet.converters.exporting import CHUNK, ExportOptions
from russet.converters.model_tensors import ModelTensors
from russet.engine.errors import InvalidOptionError, UnsupportedModelError

WEIGHTS = ("float16", "float32", "int8", "int4", "stored")
BITS = {"int8": 8, "int4": 4}
GROUPS = {8: 64, 4: 32}
"""Weights that share a scale and an offset, where a matrix is quantised for the package."""
PACKED_BITS = (2, 4, 8)

SYSTEM = "ios27"
GRAPH_BYTES = 24_000
"""What a layer's operations take in both functions: 22 kB (Llama)."""


@dataclass(frozen=True)
class Layout:
    """How a tensor is stored: `bits` None is floating-point, otherwise MLX's affine integers in groups of `group`."""

    bits: int | None
    group: int
    nbytes: int

    def kind(self, dtype: str) -> str:
        return dtype if self.bits is None else f"affine{self.bits}"


@dataclass(frozen=True)
class Plan:
    """An export, decided. `dtype` is what the package computes in; `layouts` are by role."""

    weights: str
    dtype: str
    context: int
    chunk: int
    layouts: dict[str, Layout]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        layers = {role.split(".")[1] for role in self.layouts if role.startswith("layers.")}
        return sum(layout.nbytes for layout in self.layouts.values()) + GRAPH_BYTES * (len(layers) + 1)


def make_plan(model: ModelTensors, options: ExportOptions) -> Plan:
    """Decide how `model` is exported; InvalidOptionError and UnsupportedModelError name what Core AI packages lack."""
    _refuse(model, options)
    layouts = {role: model.stored_layout(role) for role in roles_of(model.config)}
    two_bits = [role for role, (bits, _) in layouts.items() if bits == 2]
    weights = options.weights or ("stored" if two_bits else "float16")
    if weights == "stored" and not any(bits for bits, _ in layouts.values()):
        raise InvalidOptionError(
            f"{model.folder.name} has no packed weights to keep as they are stored; give another --weights."
        )
    dtype = "float32" if weights == "float32" else "float16"
    planned, dense = {}, []
    for role, shape in roles_of(model.config).items():
        planned[role] = _layout(model, role, shape, weights, 4 if dtype == "float32" else 2)
        if weights in BITS and len(shape) == 2 and planned[role].bits is None:
            dense.append(role)
    notes = []
    if dense:
        more = f" and {len(dense) - 1} more" if len(dense) > 1 else ""
        notes.append(f"{dense[0]}{more} stays {dtype}, for its rows do not divide into groups of weights")
    context = options.context or model.config.max_positions
    return Plan(weights, dtype, context, min(options.chunk or 4 * CHUNK, context), planned, tuple(notes))


def _refuse(model: ModelTensors, options: ExportOptions) -> None:
    config = model.config
    if options.weights is not None and options.weights not in WEIGHTS:
        raise InvalidOptionError(
            f"Core AI packages hold {', '.join(WEIGHTS)} weights; {options.weights} is for --to coreml."
        )
    if options.system is not None:
        raise InvalidOptionError(
            f"system is {options.system!r}, but Core AI came with the systems of version 27: leave it out."
        )
    if options.context is not None and options.context > config.max_positions:
        raise InvalidOptionError(
            f"context is {options.context}, and {model.folder.name} was made for {config.max_positions} positions; "
            "give at most that."
        )


def _layout(model: ModelTensors, role: str, shape: tuple[int, ...], weights: str, width: int) -> Layout:
    count = shape[0] * (shape[1] if len(shape) == 2 else 1)
    floats = Layout(None, 0, count * width)
    if len(shape) == 1:
        return floats
    bits, group = model.stored_layout(role)
    group = group or (shape[0] if model.by_neuron(role) else shape[1])
    if weights in BITS and bits != BITS[weights]:
        # Few bits hurt the embedding and the head most.
        wanted = 8 if role in ("embed", "head") else BITS[weights]
        if bits != wanted:
            bits, group = wanted, GROUPS[wanted]
            if shape[1] % group:
                return floats
    elif weights not in (*BITS, "stored") or bits is None:
        return floats
    if bits not in PACKED_BITS:
        raise UnsupportedModelError(
            f"{model.names.get(role, role)} is packed in {bits} bits, and Core AI packages hold "
            f"{', '.join(map(str, PACKED_BITS))}; give --weights float16."
        )
    # Integers, a scale and an offset a group, and the group's zero, which is as wide as the integers.
    return Layout(bits, group, count * bits // 8 + count // group * 2 * width)
