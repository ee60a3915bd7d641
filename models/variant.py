"""What Russet's recipes change in a Llama-like model, as `config.json` says it in its block `russet`.

    "hidden_act": "relu"              the FFN's activation, a key of the family's own
    "russet": {
      "kv_source": [null, ..., 18]    a layer whose keys and values each layer reads, null for its own
      "relu_shift": 0.5               the activation is max(x - 0.5, 0)
      "relu_norms": true              max(x, 0) after the norms before attention and FFN
    }

Every key may be left out. Layers that read another's keys and values have no `k_proj` and `v_proj`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig

KEY = "russet"
_KEYS = ("kv_source", "relu_shift", "relu_norms")


def apply_variant(config: dict[str, Any], decoder: DecoderConfig) -> DecoderConfig:
    """The decoder with what the block `russet` changes; raises UnsupportedModelError for what cannot be."""
    block = config.get(KEY)
    if block is None:
        return decoder
    if not isinstance(block, dict) or set(block) - set(_KEYS):
        raise UnsupportedModelError(
            f"config.json has the block {KEY!r} with {block!r}; this Russet knows {', '.join(_KEYS)} in it."
        )
    sources = _kv_sources(block.get("kv_source"), len(decoder.layers))
    layers = tuple(replace(layer, kv_source=source) for layer, source in zip(decoder.layers, sources, strict=True))
    shift, norms = block.get("relu_shift", 0), block.get("relu_norms", False)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not math.isfinite(shift):
        raise UnsupportedModelError(f"config.json has relu_shift {shift!r}; a number is expected.")
    if not isinstance(norms, bool):
        raise UnsupportedModelError(f"config.json has relu_norms {norms!r}; true or false is expected.")
    if shift and any(layer.activation != "relu" for layer in layers):
        raise UnsupportedModelError("config.json has relu_shift, but its activation is not relu.")
    layers = tuple(replace(layer, relu_shift=float(shift)) for layer in layers)
    return replace(decoder, layers=layers, relu_norms=norms)


def set_kv_sources(config: dict[str, Any], sources: list[int | None]) -> dict[str, Any]:
    """`config` with the layers whose keys and values each layer reads."""
    return with_variant(config, kv_source=sources)


def with_variant(config: dict[str, Any], **values: Any) -> dict[str, Any]:
    """`config` with keys of its block `russet` set."""
    return {**config, KEY: {**(config.get(KEY) or {}), **values}}


def _kv_sources(sources: Any, layers: int) -> list[int | None]:
    if sources is None:
        return [None] * layers
    if not isinstance(sources, list) or len(sources) != layers:
        raise UnsupportedModelError(f"config.json has kv_source {sources!r}; a list of {layers} entries is expected.")
    for i, source in enumerate(sources):
        if source is None:
            continue
        if type(source) is not int or not 0 <= source < i or sources[source] is not None:
            raise UnsupportedModelError(
                f"config.json lets layer {i} read the keys and values of layer {source!r}; an earlier layer that has "
                "its own is expected."
            )
    return sources
