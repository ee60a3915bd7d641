"""A decoder with some of its layers left out, sharing the weights of the rest: nothing is copied.

KV Prediction (arXiv 2410.08391) builds auxiliaries this way, keeping 3/4, 1/2 or 1/4 of the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.decoder import Block, Decoder


def spread_layers(config: DecoderConfig, share: float) -> tuple[int, ...]:
    """Kept layers, evenly spread: all but every fourth for 0.75, the even ones for 0.5, every fourth for 0.25.

    Where layers that read another layer's keys and values are among them, so is that layer. Raises
    `InvalidOptionError` unless `share` is above 0 and at most 1.
    """
    _check_share(share)
    step = Fraction(share).limit_denominator(1000)
    kept = {i for i in range(len(config.layers)) if _ceil(step * (i + 1)) > _ceil(step * i)}
    return _with_sources(config, kept)


def first_layers(config: DecoderConfig, share: float) -> tuple[int, ...]:
    """The first `share` of the layers, at least one: they compute what they compute in the whole model."""
    _check_share(share)
    count = max(1, round(share * len(config.layers)))
    return tuple(range(count))


def layer_pruned(base: Decoder, layers: Sequence[int] | float) -> Decoder:
    """A view of `base` with the given layers only, or with a share of them as `spread_layers` picks it.

    It has layers 0, 1, ... of its own, for its caches and probes. Raises `InvalidOptionError` for layers that are out
    of order or do not exist, and where a kept layer reads keys and values of one that is not.
    """
    if isinstance(layers, int | float):
        layers = spread_layers(base.config, layers)
    config = pruned_config(base.config, layers)
    pairs = zip(layers, config.layers, strict=True)
    blocks = [_block(base.blocks[layer], i, spec) for i, (layer, spec) in enumerate(pairs)]
    return Decoder(config, base.dtype, base.embed, blocks, base.norm, base.output, base.fused_rope)


def pruned_config(config: DecoderConfig, layers: Sequence[int]) -> DecoderConfig:
    """The configuration of a decoder with the given layers only; raises what `layer_pruned` raises."""
    _check_layers(config, layers)
    return replace(config, layers=tuple(_renumbered(config.layers[i], layers) for i in layers))


def _renumbered(spec: LayerSpec, layers: Sequence[int]) -> LayerSpec:
    return spec if spec.kv_source is None else replace(spec, kv_source=list(layers).index(spec.kv_source))


def _block(block: Block, index: int, spec: LayerSpec) -> Block:
    view = copy.copy(block)
    view.index, view.spec = index, spec
    return view


def _ceil(x: Fraction) -> int:
    return -(-x.numerator // x.denominator)


def _with_sources(config: DecoderConfig, kept: set[int]) -> tuple[int, ...]:
    sources = {config.layers[i].kv_source for i in kept}
    return tuple(sorted(kept | {source for source in sources if source is not None}))


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InvalidOptionError(f"The share of layers to keep is {share}; it must be above 0 and at most 1.")


def _check_layers(config: DecoderConfig, layers: Sequence[int]) -> None:
    count = len(config.layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise InvalidOptionError(
            f"The layers to keep are {list(layers)}; they must be some of 0 to {count - 1}, in rising order."
        )
    for i in layers:
        source = config.layers[i].kv_source
        if source is not None and source not in layers:
            raise InvalidOptionError(
                f"Layer {i} reads the keys and values of layer {source}, which is not kept; keep both or neither."
            )
