"""A block's weights as the fused step's kernels read them, one sheet a projection, and the kernels for them.

The block goes on with the same weights in their new memory, so nothing is held twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from russet.engine.errors import UnsupportedModelError
from russet.kernels.attend_decode import pack_form
from russet.kernels.base import Kernel
from russet.kernels.embed_row import embed_row
from russet.kernels.norm_matvec import norm_matvec
from russet.kernels.packed import BITS, GROUPS, Format, none
from russet.kernels.residual_matvec import MAX_MERGED, merge_matvec, residual_matvec
from russet.kernels.sheet import Form, Parts, make_sheet, parts_of
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.linear import Affine, Branches, Dense, Linear, Quantized, Weight
from russet.models.norm import RMSNorm
from russet.models.sparse_ffn import KernelFFN

if TYPE_CHECKING:
    from russet.models.decoder import Block, Decoder


@dataclass(frozen=True, slots=True)
class DenseFFN:
    """An FFN that reads all of its weights."""

    gate_up: mx.array
    down: mx.array
    gate: Kernel
    add: Kernel

    @property
    def disabled(self) -> bool:
        return bool(self.gate.disabled or self.add.disabled)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One block: its sheets, and the kernels that read them. `source` is the slot that it attends over."""

    owns: bool
    source: int
    rope: int
    post_norms: bool
    form: mx.array
    qkv: mx.array
    out: mx.array
    project: Kernel
    merge: Kernel
    ffn: DenseFFN | KernelFFN

    @property
    def disabled(self) -> bool:
        return bool(self.project.disabled or self.merge.disabled or self.ffn.disabled)


@dataclass(frozen=True, slots=True)
class Head:
    """The table that tokens are looked up in, and the last norm and projection, which may share it."""

    table: mx.array
    embed: Kernel
    sheet: mx.array
    project: Kernel

    @property
    def disabled(self) -> bool:
        return bool(self.embed.disabled or self.project.disabled)


def check_shapes(config: DecoderConfig) -> None:
    """Raise UnsupportedModelError for a model that the kernels do not take on a GPU."""
    for spec in config.layers:
        if spec.head_dim % 32 or spec.head_dim > 256 or spec.heads * spec.head_dim > MAX_MERGED:
            raise UnsupportedModelError(f"{spec.heads} heads of {spec.head_dim} features")
        for size in (config.hidden_dim, spec.ffn_dim):
            if size % 32:
                raise UnsupportedModelError(f"rows of {size} weights")


def fused_layer(block: Block, decoder: Decoder) -> FusedLayer:
    """The sheets and kernels of one block. Raises UnsupportedModelError."""
    config, spec = decoder.config, block.spec
    if spec.attention != "softmax":
        raise UnsupportedModelError(f"{spec.attention} attention")
    if spec.relu_shift:
        raise UnsupportedModelError("a shifted ReLU")
    owns = spec.kv_source is None
    if spec.kv_source is not None and not _sees_as(spec, config.layers[spec.kv_source]):
        raise UnsupportedModelError("layers that read another one's rows with a rotation or window of their own")
    previous = None if block.index == 0 else decoder.blocks[block.index - 1].post_ffn_norm
    sheet = partial(_sheet, dtype=decoder.dtype)
    qkv_form, qkv = sheet(_only(block.project), previous, block.attn_norm)
    out_form, out = sheet(block.out)
    form = _attention_form(block, decoder)
    mx.eval(form)
    if isinstance(block.step_ffn, KernelFFN):
        ffn: DenseFFN | KernelFFN = block.step_ffn
    else:
        gate_form, gate_up = sheet(_only(block.gate_up), block.post_attn_norm, block.ffn_norm)
        down_form, down = sheet(block.down)
        gate = norm_matvec(gate_form, config.norm_eps, spec.activation)
        ffn = DenseFFN(gate_up, down, gate, residual_matvec(down_form, not config.post_norms))
    return FusedLayer(
        owns=owns,
        source=block.index if spec.kv_source is None else spec.kv_source,
        rope=list(decoder.rotaries).index(spec.rope),
        post_norms=config.post_norms,
        form=form,
        qkv=qkv,
        out=out,
        project=norm_matvec(qkv_form, config.norm_eps),
        merge=merge_matvec(out_form, not config.post_norms, spec.heads),
        ffn=ffn,
    )


def fused_head(decoder: Decoder) -> Head:
    """The sheets and kernels of embedding and head. Raises UnsupportedModelError."""
    config = decoder.config
    last = decoder.blocks[-1].post_ffn_norm
    form, sheet = _sheet(decoder.output, last, decoder.norm, dtype=decoder.dtype)
    mx.eval(sheet)
    table_form, table = form, sheet
    if config.tied_head:
        decoder.embed.weight = _weight(form, parts_of(form, sheet))
    else:
        table_form = _form(decoder.embed.weight, decoder.dtype)
        table = make_sheet(table_form, _parts(decoder.embed.weight, table_form, none(decoder.dtype), ()))
        mx.eval(table)
        decoder.embed.weight = _weight(table_form, parts_of(table_form, table))
    return Head(
        table=table,
        embed=embed_row(table_form, decoder.embed.scale),
        sheet=sheet,
        project=norm_matvec(form, config.norm_eps),
    )


def _sees_as(reader: LayerSpec, writer: LayerSpec) -> bool:
    """Whether what a step says of the writer's slot holds for its reader too."""
    return (reader.rope, reader.window) == (writer.rope, writer.window)


def _attention_form(block: Block, decoder: Decoder) -> mx.array:
    spec = block.spec
    writer = block if spec.kv_source is None else decoder.blocks[spec.kv_source]
    key_scale, value_scale = (float(np.array(scale)) for scale in writer.kv_scales or (mx.array(1.0), mx.array(1.0)))
    return pack_form(
        decoder.config.norm_eps,
        block.scale,
        block.rotate_first,
        spec.rope.dims // 2,
        spec.rope.interleaved,
        key_scale,
        value_scale,
        _gain(block.q_norm) if block.q_norm else None,
        _gain(block.k_norm) if block.k_norm else None,
    )


def _sheet(linear: Linear, *norms: object, dtype: mx.Dtype) -> tuple[Form, mx.array]:
    """One sheet of a linear map and the norms in front of it, whose memory the map goes on with."""
    gains = tuple(_gain(norm).astype(dtype) for norm in norms if norm is not None)
    if isinstance(linear, Dense):
        weight: Weight = linear.weight
    elif isinstance(linear, Quantized):
        weight = linear.affine
    else:
        raise UnsupportedModelError("linear maps of this kind")
    bias = none(dtype) if linear.bias is None else linear.bias.astype(dtype)
    form = _form(weight, dtype, linear.bias is not None, len(gains))
    sheet = make_sheet(form, _parts(weight, form, bias, gains))
    mx.eval(sheet)
    linear.adopt(_weight(form, parts_of(form, sheet)))  # type: ignore[arg-type]
    return form, sheet


def _form(weight: Weight, dtype: mx.Dtype, bias: bool = False, gains: int = 0) -> Form:
    if isinstance(weight, mx.array):
        return Form(weight.shape[1], Format(8 * dtype.size, 0, False), dtype, bias, gains)
    if weight.adapter is not None:
        raise UnsupportedModelError("weights with adapters")
    if weight.bits not in BITS or weight.group_size not in GROUPS:
        raise UnsupportedModelError(f"{weight.bits}-bit weights in groups of {weight.group_size}")
    k = weight.weight.shape[1] * 32 // weight.bits
    return Form(k, Format(weight.bits, weight.group_size, weight.balanced()), dtype, bias, gains)


def _parts(weight: Weight, form: Form, bias: mx.array, gains: tuple[mx.array, ...]) -> Parts:
    absent = none(form.dtype)
    if isinstance(weight, mx.array):
        return Parts(weight.astype(form.dtype), absent, absent, bias, gains)
    scales, offsets = weight.scales.astype(form.dtype), weight.biases.astype(form.dtype)
    return Parts(weight.weight, scales, absent if form.kind.balanced else offsets, bias, gains)


def _weight(form: Form, parts: Parts) -> Weight:
    """A sheet's rows as a linear map or an embedding holds them."""
    if form.kind.bits >= 16:
        return parts.w
    offsets = -1.5 * parts.scales if form.kind.balanced else parts.offsets
    return Affine(parts.w, parts.scales, offsets, form.kind.group, form.kind.bits)


def _gain(norm: object) -> mx.array:
    if not isinstance(norm, RMSNorm):
        raise UnsupportedModelError("norms of this kind")
    return norm.weight


def _only(parts: Branches) -> Linear:
    if len(parts.maps) != 1:
        raise UnsupportedModelError("projections of one input in several formats")
    return parts.maps[0]
