"""Training for 2-bit weights, after Apple's on-device model (arXiv 2507.13575, section 5.1).

Every projection of the layers is rounded to balanced levels in the forward pass and trained in float32 behind it, with
a clipping factor that is learned; nothing decays. The model is distilled from the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Batch, Exported, Objective, Options, Recipe, Treatment
from russet.converters.recipes.forward import decoder_of, hidden_rows
from russet.converters.recipes.losses import head_loss
from russet.converters.recipes.measure import means
from russet.converters.recipes.source import Params, Source
from russet.converters.recipes.two_bit import CLIP, TwoBit
from russet.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class QatOptions(Options):
    """`group` weights share a scale, 0 stands for a row; `clip` is "tensor" or "scale", what a clipping factor is
    learned for; `clip_rate` multiplies the learning rate of these factors; `embedding_bits` is 4, 8 or 16. Over the
    first `ramp` of the run, weights go from unrounded to rounded. `adapter` is the rank of a correction in 16 bits."""

    parts: ClassVar[tuple[str, ...]] = ("ramp",)

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
        chosen = self.options
        self.rounding = TwoBit(self.config, chosen.group, chosen.clip, chosen.embedding_bits, chosen.adapter)

    def start(self) -> Params:
        """The source's weights, and the clipping factors of those that are rounded to 2 bits."""
        weights = self.unrounded()
        return weights | self.rounding.start(weights)

    def unrounded(self) -> Params:
        """The weights that training begins with, before any rounding."""
        return super().start()

    def treatment(self, name: str) -> Treatment:
        """Nothing decays: shrinking weights would fight the levels that they are to settle on."""
        return Treatment(rate=self.clip_rate if name.endswith(CLIP) else 1.0, decays=False)

    def weights(self, params: Params, at: mx.array) -> Params:
        return self.rounding.weights(params, mx.minimum(at / self.ramp, 1.0) if self.ramp else None)

    def export(self, params: Params) -> Exported:
        tensors, keys = self.rounding.tensors(params, self.source.family.names(self.config))
        return Exported(self.raw | keys, tensors)

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        """Bits a body weight, how many codes have changed, the clipping factors, and what other roundings cost.

        `perplexity` on the held-out text is of the source, of the result, and of the source rounded to nearest: to our
        levels, and to MLX's 2 and 4 bits in groups of 64, as mlx-lm converts. `gap` is the share of our rounding's loss
        that is left after training, in perplexity and in nats.
        """
        factors = [mx.exp(array).mean().item() for name, array in params.items() if name.endswith(CLIP)]
        return {
            "bits_per_body_weight": self.rounding.bits_per_weight(params),
            "codes_changed": self.rounding.changed(params, self.unrounded()),
            "clipping": {"least": min(factors), "mean": sum(factors) / len(factors), "most": max(factors)},  # pyright: ignore[reportArgumentType]
            **self._compared(params, batches, progress),
        }

    def _compared(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        first = self.unrounded()
        models = {
            "source": first,
            "result": self.rounding.weights(params),
            "round_to_nearest": self.rounding.weights(first | self.rounding.factors(first)),
            "mlx_2_bit": mlx_rounded(first, 2),
            "mlx_4_bit": mlx_rounded(first, 4),
        }
        nats = {}
        for name, arrays in models.items():
            decoder = decoder_of(self.config, arrays, self.dtype)
            nats[name] = means(lambda batch: self._terms(decoder, batch), batches)["ce"]  # noqa: B023
            progress()
        perplexity = {name: math.exp(value) for name, value in nats.items()}
        gap = {
            kind: (found["result"] - found["source"]) / (found["round_to_nearest"] - found["source"])
            for kind, found in (("perplexity", perplexity), ("nats", nats))
        }
        return {"perplexity": perplexity, "gap": gap}

    @staticmethod
    def _terms(decoder: Decoder, batch: Batch) -> dict[str, mx.array]:
        return head_loss(hidden_rows(decoder, batch.tokens), decoder, batch.labels, None, kl=0.0, ce=1.0)[1]


def mlx_rounded(weights: Params, bits: int) -> Params:
    """Matrices rounded to MLX's affine layout with float16 scales, in groups of 64 where they fit, else of 32.

    Those whose rows divide into neither stay as they are.
    """
    rounded = {}
    for name, array in weights.items():
        if array.ndim != 2 or array.shape[1] % 32:
            rounded[name] = array
            continue
        group = 64 if array.shape[1] % 64 == 0 else 32
        packed, scales, offsets = mx.quantize(array.astype(mx.float16), group, bits)
        wide = scales.astype(mx.float32), offsets.astype(mx.float32)
        rounded[name] = mx.dequantize(packed, *wide, group, bits)
        mx.eval(rounded[name])
    return rounded
