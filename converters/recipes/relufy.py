"""ReLU in place of SwiGLU's SiLU, so that most neurons of an FFN are zero and can be left out (arXiv 2310.04564).

Stage 1 changes the gate's activation; stage 2 also cuts rows at zero after the norms before attention and FFN. SiLU
turns into ReLU over the first steps, x sigmoid(b x) with b growing. More gates are pushed below zero by a penalty on a
smooth count of those above it, as strong as the share of active neurons is above its target, which falls gradually: the
idea of ProSparse (arXiv 2402.13516), with a count in place of an L1 norm so that large activations keep their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Batch, Loss, Objective, Options, Recipe
from russet.converters.recipes.forward import decoder_of
from russet.converters.recipes.source import Params
from russet.converters.recipes.sparsity_report import measure_sparsity
from russet.engine.errors import InvalidOptionError
from russet.models.activations import Gate
from russet.models.decoder import Decoder, Probe
from russet.models.families import read_decoder
from russet.models.variant import with_variant

SHARPEST = 64.0
"""Where x sigmoid(b x) stops being sharpened before it is ReLU."""
DENSE = 0.5
"""The share of active neurons that the penalty's target starts from."""
SMOOTHING = 0.25
"""The smooth count's width, in standard deviations of a layer's gates."""


@dataclass(frozen=True, slots=True)
class ReluOptions(Options):
    """`soften` and `anneal` are the parts of the training in which SiLU becomes ReLU and the target falls.

    `sparsity` is the target for the share of zeros in the down projection's input, `penalty` how hard it is pursued.
    """

    parts: ClassVar[tuple[str, ...]] = ("soften", "anneal")

    stage: int = 1
    shift: float = 0.0
    soften: float = 0.1
    sparsity: float = 0.88
    penalty: float = 60.0
    anneal: float = 0.5


class Relufy(Recipe):
    """A ReLU gate, made sparse."""

    name = "relufy"
    summary = "ReLU gates instead of SwiGLU's SiLU, made sparse by a penalty"
    options_type: ClassVar[type[Options]] = ReluOptions
    objective: ClassVar[Objective] = Objective(kl=1.0, hidden=0.5)

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        options = relu_options(self.options)
        return relu_gates(raw, options.stage == 2, options.shift)

    def decoder(self, params: Params, at: mx.array) -> Decoder:
        options, decoder = relu_options(self.options), super().decoder(params, at)
        return softened(decoder, at, options.soften)

    def probe(self) -> Probe:
        return Gates(self.config.layers[0].relu_shift)

    def penalty(self, probe: Probe | None, at: mx.array) -> Loss:
        return gate_penalty(probe, at, relu_options(self.options))

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        decoder = decoder_of(self.config, self.weights(params, mx.array(1.0)), self.dtype)
        return {"sparsity": measure_sparsity(decoder, batches, progress)}


def relu_options(options: Options) -> ReluOptions:
    """The options, checked."""
    assert isinstance(options, ReluOptions)
    if options.stage not in (1, 2):
        raise InvalidOptionError(f"stage is {options.stage}; it is 1 (gates) or 2 (norms as well).")
    check_target(options.sparsity, options.penalty)
    return options


def check_target(sparsity: float, penalty: float) -> None:
    """Raises InvalidOptionError for a share of zeros that cannot be, and for a penalty that would reward."""
    if not 0 <= sparsity < 1:
        raise InvalidOptionError(f"sparsity is {sparsity}; it is a share from 0 to below 1.")
    if penalty < 0:
        raise InvalidOptionError(f"penalty is {penalty}; it is 0 or above.")


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


def softened(decoder: Decoder, at: mx.array, soften: float) -> Decoder:
    """The decoder with its ReLU still on the way from SiLU, until `at` is `soften`."""
    if soften:
        for block in decoder.blocks:
            block.gate = _soft_gate(at / soften, block.spec.relu_shift)
    return decoder


def _soft_gate(done: mx.array, shift: float) -> Gate:
    sharpness = 1 / mx.maximum(1 - done, 1 / SHARPEST)

    def gate(x: mx.array, up: mx.array) -> mx.array:
        moved = x - (shift * mx.minimum(done, 1)).astype(x.dtype) if shift else x
        soft = moved * mx.sigmoid(moved * sharpness.astype(x.dtype))
        return mx.where(done < 1, soft, mx.maximum(moved, 0)) * up

    return gate


class Gates(Probe):
    """Each layer's share of active gates, and a smooth count of them that has a gradient."""

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.active: list[mx.array] = []
        self.counts: list[mx.array] = []

    def ffn(self, layer: int, x: mx.array, gate: mx.array, up: mx.array) -> None:
        wide = gate.astype(mx.float32) - self.shift
        fixed = mx.stop_gradient(wide)
        width = SMOOTHING * mx.sqrt(mx.square(fixed).mean())
        self.active.append((fixed > 0).astype(mx.float32).mean())
        self.counts.append(mx.sigmoid(wide / width).mean())


def gate_penalty(probe: Probe | None, at: mx.array, options: ReluOptions) -> Loss:
    """The weighted count; for the curve also the share of neurons that are active."""
    assert isinstance(probe, Gates)
    active = mx.stack(probe.active).mean()
    fallen = mx.minimum(1.0, at / max(options.anneal, 1e-6))
    target = DENSE + (1 - options.sparsity - DENSE) * fallen
    strength = options.penalty * mx.maximum(active - target, 0)
    penalty = strength * mx.stack(probe.counts).mean()
    return penalty, {"penalty": penalty, "active": active}
