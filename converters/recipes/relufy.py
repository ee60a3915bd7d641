"""ReLU in place of SwiGLU's SiLU, so that most neurons of an FFN are zero and can be left out (arXiv 2310.04564).

Stage 1 changes the gate's activation; stage 2 also cuts rows at zero after the norms before attention and FFN. A
penalty on active gates, which comes in gradually, makes more of them zero (ProSparse, arXiv 2402.13516).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Options, Recipe
from russet.engine.errors import InvalidOptionError
from russet.models.decoder import Probe
from russet.models.families import read_decoder
from russet.models.variant import with_variant


@dataclass(frozen=True, slots=True)
class ReluOptions(Options):
    """`penalty` weighs the mean active gate at its strongest; it rises from 0 over the first `anneal` of the steps."""

    stage: int = 1
    shift: float = 0.0
    penalty: float = 0.1
    anneal: float = 0.3


class Relufy(Recipe):
    """A ReLU gate, made sparse."""

    name = "relufy"
    summary = "ReLU gates instead of SwiGLU's SiLU, made sparse by a penalty"
    options_type: ClassVar[type[Options]] = ReluOptions

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        options = self.options
        assert isinstance(options, ReluOptions)
        if options.stage not in (1, 2):
            raise InvalidOptionError(f"stage is {options.stage}; it is 1 (gates) or 2 (norms as well).")
        return relu_gates(raw, options.stage == 2, options.shift)

    def probe(self) -> Probe:
        return Gates(self.config.layers[0].relu_shift)

    def penalty(self, probe: Probe | None, at: mx.array) -> dict[str, mx.array]:
        assert isinstance(probe, Gates) and isinstance(self.options, ReluOptions)
        strength = self.options.penalty * mx.minimum(1.0, at / max(self.options.anneal, 1e-6))
        return {"penalty": strength * mx.stack(probe.means).mean()}


class Gates(Probe):
    """Keeps each layer's mean gate after the activation."""

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.means: list[mx.array] = []

    def ffn(self, layer: int, x: mx.array, gate: mx.array, up: mx.array) -> None:
        self.means.append(mx.maximum(gate - self.shift if self.shift else gate, 0).astype(mx.float32).mean())


def relu_gates(raw: dict[str, Any], norms: bool = False, shift: float = 0.0) -> dict[str, Any]:
    """config.json with ReLU as the FFN's activation."""
    if any(layer.activation == "relu" for layer in read_decoder(raw).layers):
        raise InvalidOptionError("The source's FFNs have ReLU already; give a model with SiLU.")
    raw = {**raw, "hidden_act": "relu"}
    changes: dict[str, Any] = {}
    if norms:
        changes["relu_norms"] = True
    if shift:
        changes["relu_shift"] = shift
    return with_variant(raw, **changes) if changes else raw
