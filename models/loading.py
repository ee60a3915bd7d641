"""Build a decoder from an MLX model folder: config.json, safetensors shards, stock tensor names."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import mlx.core as mx

from russet.engine.blas import use_fast_blas
from russet.engine.device import memory_bytes, on_gpu
from russet.engine.errors import InvalidOptionError
from russet.kernels.base import mode
from russet.models.activations import gated
from russet.models.attention import attention
from russet.models.config import DecoderConfig
from russet.models.config_file import read_config
from russet.models.decoder import Block, Decoder, Norm
from russet.models.families import family_of, read_decoder
from russet.models.linear import Branches, Embedding, Linear, Weight, branches, linear
from russet.models.norm import ReLUNorm, RMSNorm, TrainedNorm
from russet.models.sparse_ffn import down_projection, step_ffn
from russet.models.sparsity import Sparsity, read_sparsity
from russet.models.weights import Weights, WeightSource

_logger = logging.getLogger("russet")

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def load_decoder(folder: Path | str, dtype: str | None = None) -> Decoder:
    """The decoder in a model folder, with its weights in memory.

    `dtype` is what it computes in: float32 on a CPU and the checkpoint's own on a GPU unless said otherwise. Quantised
    weights stay packed on a GPU; a CPU expands them where memory allows, since MLX multiplies packed weights there
    about ten times slower than dense ones.
    """
    folder = Path(folder)
    use_fast_blas()
    config = read_config(folder)
    decoder_config = read_decoder(config)
    weights = Weights(folder, config, family_of(config).names(decoder_config), decoder_config)
    compute = _dtype(dtype, weights)
    sparsity = read_sparsity(config, len(decoder_config.layers))
    builder = Builder(decoder_config, weights, compute, expand=_expand(weights, compute), sparsity=sparsity)
    decoder = builder.build()
    decoder.source = folder
    decoder.cuts_ffns = any(sparsity.thresholds)
    return decoder


def _dtype(name: str | None, weights: Weights) -> mx.Dtype:
    if name is None:
        return weights.dtype if on_gpu() else mx.float32
    if name not in DTYPES:
        raise InvalidOptionError(f"dtype is {name!r}; it must be {', '.join(DTYPES)}.")
    return DTYPES[name]


def _expand(weights: Weights, dtype: mx.Dtype) -> bool:
    if on_gpu() or not weights.packed:
        return False
    size, room = weights.parameters * dtype.size, 0.6 * memory_bytes()
    if size > room:
        _logger.warning(
            "the weights stay packed, since %.1f GB expanded are too much for this machine: a CPU is slow with them",
            size / 1e9,
        )
    return size <= room


class Builder:
    """Turns named tensors into blocks, a few layers at a time, so that their source can be freed after them.

    `traced` evaluates nothing and leaves out what has no gradient, so that a decoder can be built inside a function
    that MLX differentiates or compiles.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: WeightSource,
        dtype: mx.Dtype,
        expand: bool,
        sparsity: Sparsity | None = None,
        traced: bool = False,
    ) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.expand = expand
        self.sparsity = sparsity or Sparsity()
        self.traced = traced

    def build(self) -> Decoder:
        config = self.config
        blocks: list[Block] = []
        streams = [mx.default_stream(mx.default_device())] if self.traced else _loading_streams()
        with mx.stream(streams[-1]):
            embed = Embedding(self._weight("embed"), config.embed_scale, self.dtype)
        for start in range(0, len(config.layers), len(streams)):
            group = []
            for i, stream in zip(range(start, len(config.layers)), streams, strict=False):
                with mx.stream(stream):
                    group.append(self.block(i))
            # Joined weights are evaluated here so that their parts can go.
            self._evaluate([block.arrays for block in group])
            blocks += group
        norm = self._norm("norm")
        head = embed.head() if config.tied_head else linear(self._weight("head"))
        self._evaluate(head.arrays)
        return Decoder(config, self.dtype, embed, blocks, norm, head, fused_rope=on_gpu())

    def _evaluate(self, arrays: object) -> None:
        if not self.traced:
            mx.eval(arrays, self.weights.taken())

    def block(self, i: int) -> Block:
        """One layer, unevaluated."""
        config, spec = self.config, self.config.layers[i]
        role = f"layers.{i}."
        owns = spec.kv_source is None
        has_scales = owns and config.quantized_kv
        ffn_norm, gate_up = self._input_norm(role + "ffn_norm"), self._gate_up(i)
        threshold = self.sparsity.threshold(i)
        sparse = (spec.activation == "relu" or threshold > 0) and not (config.ffn_bias or config.post_norms)
        sparse = sparse and not (spec.relu_shift or config.relu_norms or self.traced)
        down = self._down(role + "down", sparse)
        return Block(
            i,
            spec,
            config.attention_scale or spec.head_dim**-0.5,
            attn_norm=self._input_norm(role + "attn_norm"),
            project=self._queries_keys_values(i) if owns else self._branches([role + "q"]),
            attend=attention(spec, on_gpu()),
            out=linear(self._weight(role + "o"), self._bias(role + "o", config.out_bias)),
            ffn_norm=ffn_norm,
            gate_up=gate_up,
            gate=gated(spec.activation, compiled=on_gpu(), shift=spec.relu_shift),
            down=down,
            step_ffn=step_ffn(ffn_norm, gate_up, down, spec.activation, threshold) if sparse else None,
            q_norm=self._norm(role + "q_norm") if config.qk_norm != "none" else None,
            k_norm=self._norm(role + "k_norm") if config.qk_norm != "none" and owns else None,
            rotate_first=config.qk_norm == "after_rope",
            kv_scales=(self._array(role + "k_scale"), self._array(role + "v_scale")) if has_scales else None,
            post_attn_norm=self._norm(role + "post_attn_norm") if config.post_norms else None,
            post_ffn_norm=self._norm(role + "post_ffn_norm") if config.post_norms else None,
        )

    def _down(self, role: str, sparse: bool) -> Linear:
        bias = self._bias(role, self.config.ffn_bias)
        return down_projection(self._weight(role), bias, self.sparsity.neuron_major, sparse)

    def _queries_keys_values(self, i: int) -> Branches:
        spec = self.config.layers[i]
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        role = f"layers.{i}."
        if self.weights.has(role + "qkv"):
            return Branches([linear(self._weight(role + "qkv"))], [q, q + kv])
        # Keys' and values' matrices are too small for a CPU's BLAS to read at full speed by themselves.
        return self._branches([role + part for part in "qkv"], self.config.qkv_bias, join=True)

    def _gate_up(self, i: int) -> Branches:
        role, width = f"layers.{i}.", self.config.layers[i].ffn_dim
        if self.weights.has(role + "gate_up"):
            return Branches([linear(self._weight(role + "gate_up"))], [width])
        return self._branches([role + "gate", role + "up"], self.config.ffn_bias, join=_one_product())

    def _branches(self, roles: list[str], bias: bool = False, join: bool = False) -> Branches:
        return branches([self._weight(r) for r in roles], [self._bias(r, bias) for r in roles], join)

    def _weight(self, role: str) -> Weight:
        return self.weights.weight(role, self.dtype, self.expand)

    def _bias(self, role: str, wanted: bool) -> mx.array | None:
        return self.weights.bias(role).astype(self.dtype) if wanted else None

    def _array(self, role: str) -> mx.array:
        return self.weights.bare(role)

    def _input_norm(self, role: str) -> Norm:
        norm = self._norm(role)
        return ReLUNorm(norm) if self.config.relu_norms else norm

    def _norm(self, role: str) -> RMSNorm:
        weight = self.weights.dense(role, self.dtype)
        if self.config.unit_offset_norm:
            weight = (weight.astype(mx.float32) + 1).astype(self.dtype)
        return (TrainedNorm if self.traced else RMSNorm)(weight, self.config.norm_eps)


def _one_product() -> bool:
    """Whether gate and up are joined: a GPU saves a launch, a CPU nothing."""
    return on_gpu() or mode() == "reference"


@cache
def _loading_streams() -> list[mx.Stream]:
    """What layers are prepared on by turns: MLX runs one CPU thread a stream, and expanding weights takes several."""
    if on_gpu():
        return [mx.default_stream(mx.default_device())]
    return [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(min(4, os.cpu_count() or 1) - 1))]
