"""Training for 2-bit weights, after Apple's on-device model (arXiv 2507.13575, section 5.1).

Every projection of the layers is rounded to balanced levels in the forward pass and trained in float32 behind it, with
a clipping factor that is learned; nothing decays. The model is distilled from the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Batch, Exported, Objective, Options, Recipe, Treatment
from russet.converters.recipes.source import Params, Source
from russet.converters.recipes.two_bit import CLIP, TwoBit
from russet.engine.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class QatOptions(Options):
    """`group` weights share a scale, 0 stands for a row; `clip` is "tensor" or "scale", what a clipping factor is
    learned for; `clip_rate` multiplies the learning rate of these factors; `embedding_bits` is 4, 8 or 16. Over the
    first `ramp` of the run, weights go from unrounded to rounded. `adapter` is the rank of a correction in 16 bits."""

    group: int = 64
    clip: str = "tensor"
    clip_rate: float = 1.0
    embedding_bits: int = 4
    ramp: float = 0.0
    adapter: int = 0


class QAT2(Recipe):
    """Quantisation-aware training to 2 bits a weight, and a fraction more for scales."""

    name = "qat2"
    summary = "balanced 2-bit weights and a 4-bit embedding, trained by distillation"
    options_type: ClassVar[type[Options]] = QatOptions
    objective: ClassVar[Objective] = Objective(kl=1.0)

    def open(self, source: Source, dtype: mx.Dtype, teacher: Source | None = None) -> None:
        super().open(source, dtype, teacher)
        assert isinstance(self.options, QatOptions)
        self.clip_rate, self.ramp = self.options.clip_rate, self.options.ramp
        if not 0 <= self.ramp < 1:
            raise InvalidOptionError(f"ramp is {self.ramp}; it is a share of the run, at least 0 and below 1.")
        chosen = self.options
        self.rounding = TwoBit(self.config, chosen.group, chosen.clip, chosen.embedding_bits, chosen.adapter)

    def start(self) -> Params:
        """The source's weights, and the clipping factors of those that are rounded to 2 bits."""
        weights = super().start()
        return weights | self.rounding.start(weights)

    def treatment(self, name: str) -> Treatment:
        """Nothing decays: shrinking weights would fight the levels that they are to settle on."""
        return Treatment(rate=self.clip_rate if name.endswith(CLIP) else 1.0, decays=False)

    def weights(self, params: Params, at: mx.array) -> Params:
        return self.rounding.weights(params, mx.minimum(at / self.ramp, 1.0) if self.ramp else None)

    def export(self, params: Params) -> Exported:
        tensors, keys = self.rounding.tensors(params, self.source.family.names(self.config))
        return Exported(self.raw | keys, tensors)

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        """Bits a body weight, how many codes have changed, and the clipping factors."""
        factors = [mx.exp(array).mean().item() for name, array in params.items() if name.endswith(CLIP)]
        return {
            "bits_per_body_weight": self.rounding.bits_per_weight(params),
            "codes_changed": self.rounding.changed(params, self.source.weights),
            "clipping": {"least": min(factors), "mean": sum(factors) / len(factors), "most": max(factors)},
        }
