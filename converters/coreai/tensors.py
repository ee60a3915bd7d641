"""A decoder's tensors as constants of a Core AI program, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from russet.converters.coreai import operations as ops
from russet.converters.coreai.matrices import Matrix, matrix, vector
from russet.converters.coreai.operations import Value
from russet.converters.coreai.plan import Plan
from russet.converters.coreai.stored import Stored, joined, outputs, stored
from russet.converters.model_tensors import ModelTensors

CARRIED = 1 / 32
"""What a residual stream behind post norms is multiplied by in float16: Gemma's outgrows it."""


@dataclass(frozen=True)
class Fan:
    """Several matrices of one input: as one product, whose output is cut at `ends`, where they are stored alike."""

    matrices: tuple[Matrix, ...]
    ends: tuple[int, ...]

    def __call__(self, x: Value) -> list[Value]:
        if len(self.matrices) > 1 or len(self.ends) == 1:
            return [matrix(x) for matrix in self.matrices]
        y = self.matrices[0](x)  # pyright: ignore[reportGeneralTypeIssues]
        return [ops.part(y, 2, start, end) for start, end in zip((0, *self.ends), self.ends, strict=False)]


@dataclass(frozen=True)
class LayerTensors:
    """One layer's constants; `grid` are AFM's scales of keys and of values."""

    project: Fan
    out: Matrix
    gate_up: Fan
    down: Matrix
    norms: dict[str, Any]
    grid: tuple[float, float] | None


class Tensors:
    """Every tensor of a model, read once and layer by layer; `advance` is told the bytes that each layer took."""

    def __init__(self, model: ModelTensors, plan: Plan, advance: Callable[[int], None] = lambda nbytes: None) -> None:
        self.model, self.config = model, model.config
        self._plan, self.dtype = plan, np.dtype(plan.dtype).type
        self.carried = CARRIED if self.config.post_norms and plan.dtype == "float16" else 1.0
        self.embed = self._matrix("embed")
        self.layers = []
        for i in range(len(self.config.layers)):
            self.layers.append(self._read(i))
            advance(sum(layout.nbytes for role, layout in plan.layouts.items() if role.startswith(f"layers.{i}.")))
        self.norm = self._norm("norm")
        self.head = self.embed if self.config.tied_head else self._matrix("head")

    def _read(self, i: int) -> LayerTensors:
        config, spec, role = self.config, self.config.layers[i], f"layers.{i}."
        owns = spec.kv_source is None
        names = ["attn_norm", "ffn_norm"]
        if config.post_norms:
            names += ["post_attn_norm", "post_ffn_norm"]
        if config.qk_norm != "none":
            names += ["q_norm", "k_norm"] if owns else ["q_norm"]
        grid = None
        if owns and config.quantized_kv:
            grid = (self.model.scalar(role + "k_scale"), self.model.scalar(role + "v_scale"))
        layer = LayerTensors(
            project=self._fan([role + part for part in ("qkv" if owns else "q")]),
            out=self._matrix(role + "o"),
            gate_up=self._fan([role + "gate", role + "up"]),
            down=self._matrix(role + "down"),
            norms={name: self._norm(role + name) for name in names},
            grid=grid,
        )
        self.model.release(i)
        return layer

    def _fan(self, roles: list[str]) -> Fan:
        parts = [self._stored(role) for role in roles]
        biases = [self.model.bias(role) for role in roles]
        ends = tuple(int(end) for end in np.cumsum([outputs(part) for part in parts]))
        whole = joined(parts)
        if whole is None:
            each = zip(roles, parts, biases, strict=True)
            return Fan(tuple(matrix(role, part, self.dtype, bias) for role, part, bias in each), ends)
        given = [bias for bias in biases if bias is not None]
        return Fan((matrix(roles[0], whole, self.dtype, np.concatenate(given) if given else None),), ends)

    def _matrix(self, role: str) -> Matrix:
        return matrix(role, self._stored(role), self.dtype, self.model.bias(role))

    def _stored(self, role: str) -> Stored:
        return stored(self.model, role, self._plan.layouts[role])

    def _norm(self, role: str) -> Any:
        weight = self.model.dense(role) + (1 if self.config.unit_offset_norm else 0)
        return vector(role, weight * (self.carried if ".post_" in role else 1), self.dtype)
