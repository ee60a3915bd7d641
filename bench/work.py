"""What a model's shape makes every engine do: weights multiplied, rows read, and the arithmetic of attention."""

from __future__ import annotations

from russet.models.config import DecoderConfig, LayerSpec


def layer_weights(config: DecoderConfig, spec: LayerSpec) -> int:
    """Weights of a layer's linear maps."""
    q, own_rows = spec.heads * spec.head_dim, spec.kv_source is None
    rows = 2 * q + (2 * spec.kv_heads * spec.head_dim if own_rows else 0) + 3 * spec.ffn_dim
    return config.hidden_dim * rows


def step_weights(config: DecoderConfig) -> int:
    """Weights that one token is multiplied with, the head's included; a table that is only looked up is not."""
    return sum(layer_weights(config, spec) for spec in config.layers) + config.hidden_dim * config.vocab_size


def prefill_weights(config: DecoderConfig) -> int:
    """Weights that every row of a prompt is multiplied with.

    From the last layer that writes keys and values on, one row goes on; of that layer all rows need the projections
    of attention's inputs.
    """
    last = config.layers[config.last_writer]
    inputs = config.hidden_dim * (last.heads + 2 * last.kv_heads) * last.head_dim
    return sum(layer_weights(config, spec) for spec in config.layers[: config.last_writer]) + inputs


def cached_bytes(config: DecoderConfig, context: int, number_bytes: int) -> int:
    """Bytes of keys and values that one token reads, of numbers of a size; layers that share rows read them each."""
    features = (2 * spec.kv_heads * spec.head_dim * min(context, spec.window or context) for spec in config.layers)
    return sum(features) * number_bytes


def attention_operations(config: DecoderConfig, rows: int) -> int:
    """Floating-point operations of causal attention over a prompt, in the layers that compute all of its rows."""
    layers = config.layers[: config.last_writer]
    return sum(2 * rows * min(rows, 2 * (spec.window or rows)) * spec.heads * spec.head_dim for spec in layers)


def packed_bytes(weights: int, bits: float, group: int = 64, balanced: bool = False) -> float:
    """Bytes of weights with a 16-bit scale, and unless they are balanced an offset, for each group below 16 bits."""
    overhead = 0 if bits >= 16 else (16 if balanced else 32) / group
    return weights * (bits + overhead) / 8
