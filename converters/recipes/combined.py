"""ReLU gates, shared keys and values, and 2-bit weights in one model: the shape of Apple's on-device model in small.

What the source has already stays as it is, so that this can be done in stages: first with `bits=16`, then from the
result with `bits=2`, both taught by the model that it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Batch, Exported, Loss, Objective, Options, Recipe, Treatment
from russet.converters.recipes.forward import FullSequence, decoder_of
from russet.converters.recipes.qat2 import QAT2, QatOptions
from russet.converters.recipes.reader_fit import fit_readers
from russet.converters.recipes.relufy import Gates, ReluOptions, check_target, gate_penalty, relu_gates, softened
from russet.converters.recipes.share_kv import ShareKV, blended, kv_report, owned, readers_of, share_last
from russet.converters.recipes.source import Params, Source
from russet.converters.recipes.sparsity_report import measure_sparsity
from russet.engine.errors import InvalidOptionError
from russet.models.decoder import Decoder, Probe
from russet.models.families import read_decoder


@dataclass(frozen=True, slots=True)
class CombinedOptions(QatOptions):
    """The options of qat2, relufy and share_kv; `bits` is 2, or 16 for a stage without rounding.

    As in share_kv, readers' projections are solved for before the first step, or with `blend` their rows fade out.
    """

    parts: ClassVar[tuple[str, ...]] = ("ramp", "soften", "anneal", "blend")

    bits: int = 2
    soften: float = 0.1
    sparsity: float = 0.88
    penalty: float = 60.0
    anneal: float = 0.5
    share: float = 3 / 8
    slots: int = 1
    blend: float = 0.0


class Combined(QAT2):
    """All three changes at once, or the rest of them."""

    name = "combined"
    summary = "ReLU gates, shared keys and values, and 2-bit weights in one model"
    options_type: ClassVar[type[Options]] = CombinedOptions
    objective: ClassVar[Objective] = Objective(kl=1.0, hidden=0.5)
    calibration_tokens: ClassVar[int] = ShareKV.calibration_tokens

    def __init__(self, options: Options | None = None, objective: Objective | None = None) -> None:
        super().__init__(options, objective)
        self._fitted: Params = {}

    def open(self, source: Source, dtype: mx.Dtype, teacher: Source | None = None) -> None:
        if self.own.bits not in (2, 16):
            raise InvalidOptionError(f"bits is {self.own.bits}; it is 2, or 16 for a stage without rounding.")
        check_target(self.own.sparsity, self.own.penalty)
        super().open(source, dtype, teacher)
        config = source.config
        self.softens = self.own.soften if any(layer.activation != "relu" for layer in config.layers) else 0.0
        self.shares = not readers_of(config)
        self.blends = self.own.blend if self.shares else 0.0
        if self.blends and self.rounds:
            raise InvalidOptionError(
                "The source's layers have keys and values of their own, which fade out before weights are rounded: "
                "make a model with bits=16 first, or set blend=0."
            )

    @property
    def own(self) -> CombinedOptions:
        """The options, by their own type."""
        assert isinstance(self.options, CombinedOptions)
        return self.options

    @property
    def rounds(self) -> bool:
        """Whether weights go to 2 bits."""
        return self.own.bits == 2

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        config = read_decoder(raw)
        if any(layer.activation != "relu" for layer in config.layers):
            raw = relu_gates(raw)
        return raw if readers_of(config) else share_last(raw, self.own.share, self.own.slots)

    def calibrate(self, batches: Sequence[Batch]) -> None:
        # On the source's own rows, since SiLU becomes ReLU later and step by step.
        if self.shares and not self.blends:
            self._fitted = fit_readers(self.source, readers_of(self.config), [batch.tokens for batch in batches])

    def start(self) -> Params:
        return super().start() if self.rounds else self.unrounded()

    def unrounded(self) -> Params:
        return self.source.weights if self.blends else Recipe.start(self) | self._fitted

    def treatment(self, name: str) -> Treatment:
        return super().treatment(name) if self.rounds else Recipe.treatment(self, name)

    def weights(self, params: Params, at: mx.array) -> Params:
        return super().weights(params, at) if self.rounds else params

    def decoder(self, params: Params, at: mx.array) -> Decoder:
        config = read_decoder(relu_gates(self.source.raw)) if self.blends and self.softens else self.config
        if self.blends and not self.softens:
            config = self.source.config
        return softened(decoder_of(config, self.weights(params, at), self.dtype), at, self.softens)

    def sequence(self, decoder: Decoder, at: mx.array) -> FullSequence:
        return blended(self.config, at, self.blends)

    def probe(self) -> Probe:
        return Gates(self.config.layers[0].relu_shift)

    def penalty(self, probe: Probe | None, at: mx.array) -> Loss:
        own = self.own
        anneal = own.anneal if self.softens else 0.0
        return gate_penalty(probe, at, ReluOptions(sparsity=own.sparsity, penalty=own.penalty, anneal=anneal))

    def export(self, params: Params) -> Exported:
        kept = owned(params, self.source.family.names(self.config))
        return super().export(params) if self.rounds else Recipe.export(self, kept)

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        arrays = self.weights(owned(params, self.source.family.names(self.config)) | _clips(params), mx.array(1.0))
        decoder = decoder_of(self.config, arrays, self.dtype)
        found = {"sparsity": measure_sparsity(decoder, batches, progress)} | kv_report(self.teacher.config, self.config)
        return found | (super().report(params, batches, progress) if self.rounds else {})


def _clips(params: Params) -> Params:
    return {name: array for name, array in params.items() if name.endswith(".clip")}
