"""Models of well-known shapes with random weights, for speed where no checkpoint is at hand: what they say is noise.

Ours are built through the same loader as a folder's; mlx-lm's are its own classes with the same configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from russet.bench.peers import MlxLm
from russet.bench.shape_configs import SHAPES
from russet.engine.api import Model
from russet.engine.blas import use_fast_blas
from russet.engine.device import on_gpu
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder
from russet.models.families import family_of, read_decoder
from russet.models.linear import Affine, Weight
from russet.models.loading import Builder
from russet.models.shapes import expected_shapes

GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class ShapeModel:
    """As much of a `Model` as timing needs."""

    name: str
    decoder: Decoder
    weights_bytes: int
    kv_bits: int = 16
    step = Model.step

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.decoder.config.max_positions


class RandomWeights:
    """Random tensors for every role, quantised to `bits` where that is below 16, norms of one."""

    def __init__(self, config: DecoderConfig, roles: dict[str, str], bits: int, dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self._bits = bits
        self._roles = roles
        self._shapes = expected_shapes(config)
        self._taken: list[mx.array] = []

    def has(self, role: str) -> bool:
        return role in self._roles

    def weight(self, role: str, dtype: mx.Dtype, expand: bool) -> Weight:
        rows, columns = self._shapes[role]
        if self._bits >= 16:
            return self._take(mx.random.normal((rows, columns), dtype=dtype) * columns**-0.5)
        # Knuth's multiplicative hash of the index: random enough, and made at once.
        words = mx.arange(rows * columns * self._bits // 32, dtype=mx.uint32).reshape(rows, -1) * 2654435761
        scales = mx.full((rows, columns // GROUP_SIZE), columns**-0.5 * 4 / (1 << self._bits), dtype=dtype)
        # The middle of the levels is zero; 2-bit weights are then what the kernels call balanced.
        offsets = scales * -(((1 << self._bits) - 1) / 2)
        return Affine(self._take(words), self._take(scales), self._take(offsets), GROUP_SIZE, self._bits)

    def dense(self, role: str, dtype: mx.Dtype) -> mx.array:
        return self._take(mx.ones(self._shapes[role], dtype=dtype))

    def bias(self, role: str) -> mx.array:
        return self._take(mx.zeros(self._shapes[role][:1]))

    def bare(self, role: str) -> mx.array:
        return self._take(mx.full(self._shapes[role], 0.02))

    def taken(self) -> list[mx.array]:
        taken, self._taken = self._taken, []
        return taken

    def _take(self, array: mx.array) -> mx.array:
        self._taken.append(array)
        return array


def default_dtype() -> mx.Dtype:
    """What a shape is computed in unless it is said."""
    return mx.bfloat16 if on_gpu() else mx.float32


def random_model(name: str, bits: int, dtype: mx.Dtype | None = None) -> ShapeModel:
    """Russet's decoder of a shape."""
    use_fast_blas()
    dtype = dtype or default_dtype()
    mx.random.seed(0)
    raw = SHAPES[name]
    config = read_decoder(raw)
    before = mx.get_active_memory()
    weights = RandomWeights(config, family_of(raw).names(config), bits, dtype)
    decoder = Builder(config, weights, dtype, expand=False).build()
    mx.clear_cache()
    return ShapeModel(f"{name}-{bits}bit", decoder, mx.get_active_memory() - before)


class MlxLmShape(MlxLm):
    """mlx-lm's model of a shape, with its `generate_step`."""

    def __init__(self, shape: str, bits: int, dtype: mx.Dtype | None = None) -> None:
        import mlx.nn as nn
        from mlx_lm.models import afm7, llama

        mx.random.seed(0)
        before = mx.get_active_memory()
        raw = SHAPES[shape]
        module: Any = afm7 if raw["model_type"] == "afm7" else llama
        self.model = module.Model(module.ModelArgs.from_dict(raw))
        self.model.set_dtype(dtype or default_dtype())
        if bits < 16:
            # mlx-lm's fused projections (0.32.2) do not take what MLX's quantize passes on.
            owners = self.model.model.layers if module is afm7 else []
            for layer in owners:
                layer.self_attn.qkv_proj = layer.self_attn.qkv_proj.to_quantized(GROUP_SIZE, bits)
            nn.quantize(self.model, group_size=GROUP_SIZE, bits=bits)
        mx.eval(self.model.parameters())
        mx.clear_cache()
        self.setting = f"random weights of {bits} bits"
        self.weights_bytes = mx.get_active_memory() - before


def random_prompt(length: int, vocab_size: int) -> list[int]:
    """Token ids to time a prefill with, the same ones each time."""
    drawn = mx.random.randint(0, vocab_size, (length,), key=mx.random.key(length))
    return [int(token) for token in drawn.tolist()]  # type: ignore[union-attr]
