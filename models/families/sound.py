"""Whether a configuration describes a decoder that can exist, whatever checkpoint it came from."""

from __future__ import annotations

import math

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig, LayerSpec, Rope

_LARGEST_THETA, _LARGEST_FACTOR = 1e15, 1e6
"""Far above any model's, and low enough that frequencies stay numbers."""


def refuse_unsound(config: DecoderConfig) -> None:
    """Raise `UnsupportedModelError` that names the first number which no decoder can have."""
    _whole("vocabulary size", config.vocab_size)
    _whole("hidden size", config.hidden_dim)
    _whole("context length", config.max_positions)
    _number("norm epsilon", config.norm_eps)
    if config.attention_scale is not None:
        _number("attention scale", config.attention_scale)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in config.eos_token_ids):
        raise UnsupportedModelError(f"config.json has eos_token_id {list(config.eos_token_ids)}; numbers are expected.")
    for layer in dict.fromkeys(config.layers):
        _check_layer(layer)


def _check_layer(layer: LayerSpec) -> None:
    for name, value in (("heads", layer.heads), ("key-value heads", layer.kv_heads), ("FFN width", layer.ffn_dim)):
        _whole(name, value)
    _whole("head size", layer.head_dim)
    if layer.window is not None:
        _whole("attention window", layer.window)
    if layer.heads % layer.kv_heads:
        raise UnsupportedModelError(
            f"config.json has {layer.heads} heads for {layer.kv_heads} key-value heads; they must divide evenly."
        )
    _check_rope(layer.rope, layer.head_dim)


def _check_rope(rope: Rope, head_dim: int) -> None:
    if rope.dims < 2 or rope.dims % 2 or rope.dims > head_dim:
        raise UnsupportedModelError(
            f"config.json rotates {rope.dims} features of heads of {head_dim}; an even number up to that is expected."
        )
    _number("rope theta", rope.theta, 1, _LARGEST_THETA)
    if rope.scaling is not None:
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
            _number(f"rope scaling {name}", getattr(rope.scaling, name), 0, _LARGEST_FACTOR)
        _whole("original context length", rope.scaling.original_length)
        low, high = rope.scaling.low_freq_factor, rope.scaling.high_freq_factor
        if rope.scaling.kind == "llama3" and not low < high <= _LARGEST_FACTOR:
            raise UnsupportedModelError(
                f"config.json has low_freq_factor {low} and high_freq_factor {high}; the first must be the smaller one."
            )


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModelError(f"config.json has {name} {value!r}; a whole number above zero is expected.")


def _number(name: str, value: object, above: float = 0, most: float = math.inf) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value <= most or value == math.inf:
        room = f"a number above {above}" + (f", at most {most:.0e}," if most < math.inf else "")
        raise UnsupportedModelError(f"config.json has {name} {value!r}; {room} is expected.")
