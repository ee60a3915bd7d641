"""The tensors of one package as MIL values, encoded once and shared by all its functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from coremltools.converters.mil.mil import types

from russet.converters.coreml.builder import mb
from russet.converters.coreml.plan import KEPT
from russet.converters.coreml.weights import Stored, encode

if TYPE_CHECKING:
    from russet.converters.coreml.plan import Plan
    from russet.converters.model_tensors import ModelTensors
    from russet.engine.progress import Progress

Var = Any
"""A value in a MIL program."""

_PACKED = {("indices", 4): types.uint4, ("indices", 2): types.uint2, ("data", 4): types.int4}


class Bank:
    """Encodes tensors when a function first asks for them; constants of equal name become one blob of the file."""

    def __init__(self, model: ModelTensors, plan: Plan, progress: Progress) -> None:
        self._model = model
        self._plan = plan
        self._progress = progress
        self._stored: dict[str, Stored] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def start_function(self) -> None:
        """Forget the values of the function before: a value belongs to one function."""
        self._vars: dict[str, Var] = {}

    def tensor(self, role: str, order: np.ndarray | None = None) -> Var:
        """A weight, its rows (or a vector's numbers) in another `order` where one is given."""
        if role not in self._vars:
            self._vars[role] = self._emit(role, self._encoded(role, order))
        return self._vars[role]

    def bias(self, role: str, order: np.ndarray | None = None) -> Var | None:
        """The bias of a linear map, or None."""
        name = f"{role}.bias"
        if name not in self._arrays:
            bias = self._model.bias(role)
            if bias is None:
                return None
            self._arrays[name] = encode(name, "float16", bias if order is None else bias[order]).parts["val"]
        return self.constant(name, self._arrays[name])

    def constant(self, name: str, value: np.ndarray) -> Var:
        """A named constant; those of the same name in other functions have to be equal."""
        if name not in self._vars:
            self._vars[name] = mb.const(val=value, name=_identifier(name))
            self._vars[name].op.weight_id = name
        return self._vars[name]

    def scalar(self, name: str, value: float) -> Var:
        """One number in float16, rounded in the graph so that an evaluation in float32 has all of it."""
        return mb.cast(x=self.constant(name, np.array([value], np.float32)), dtype="fp16")

    def layer_scalar(self, role: str) -> float:
        """A number of the checkpoint, such as AFM's scales."""
        name = f"{role}.value"
        if name not in self._arrays:
            self._arrays[name] = np.array([self._model.scalar(role)], np.float32)
        return float(self._arrays[name][0])

    def _encoded(self, role: str, order: np.ndarray | None) -> Stored:
        if role not in self._stored:
            kind = self._plan.kinds[role]
            weight = self._model.stored(role) if kind in KEPT else self._model.dense(role)
            if kind == "float32" and self._model.config.unit_offset_norm:
                weight = weight + np.float32(1)  # type: ignore[operator]
            layout = self._plan.groups.get(role, 0), self._model.by_neuron(role)
            self._stored[role] = encode(role, kind, weight if order is None else _ordered(weight, order), *layout)
            self._progress.advance(self._plan.sizes[role])
        return self._stored[role]

    def _emit(self, role: str, stored: Stored) -> Var:
        parts = {name: self._part(role, stored, name) for name in stored.parts}
        name = _identifier(role)
        if stored.kind == "float16":
            return parts["val"]
        if stored.kind == "float32":
            return mb.cast(x=parts["val"], dtype="fp16", name=name)
        if "data" in parts:
            return mb.constexpr_blockwise_shift_scale(**parts, name=name)
        if stored.kind == "levels2":
            levels = mb.constexpr_lut_to_dense(indices=parts["indices"], lut=parts["levels"], name=f"{name}_levels")
            return mb.constexpr_blockwise_shift_scale(data=levels, scale=parts["scale"], name=name)
        return mb.constexpr_lut_to_dense(indices=parts["indices"], lut=parts["lut"], name=name)

    def _part(self, role: str, stored: Stored, name: str) -> Var:
        packed = _PACKED.get((name, stored.bits(name)))
        value = stored.parts[name]
        if packed is not None:
            value = value.astype(types.nptype_from_builtin(packed))
        return self.constant(f"{role}.{name}" if name != "val" else role, value)


def _identifier(name: str) -> str:
    return name.replace(".", "_")


def _ordered(weight: Any, order: np.ndarray) -> Any:
    """Rows in another order, of an array or of packed rows."""
    if isinstance(weight, np.ndarray):
        return weight[order]
    import mlx.core as mx

    return weight.rows(mx.array(order))
