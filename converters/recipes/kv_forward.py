"""Forward passes in which attention meets predicted keys and values in place of the rows' own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import mlx.core as mx

from russet.converters.recipes.forward import FullSequence, SequenceRows
from russet.converters.recipes.source import Params
from russet.engine.cache import Mask
from russet.engine.prefill.predictor import PARTS, Seen
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.decoder import Decoder, Probe
from russet.models.rope import Positions

MAPS, AUXILIARY = "maps.", "auxiliary."
"""What the names of trained arrays begin with; a map goes on as in the predictor, a layer by its role."""

RUN = 16
"""Tokens that are real together, about as many as share their scores when a prompt's are ranked."""


@dataclass
class Watch(Probe):
    """Keeps what layers compute on the way, for gradients too."""

    seen: dict[int, Seen] = field(default_factory=dict)
    _rows: dict[int, mx.array] = field(default_factory=dict)

    def normed(self, layer: int, rows: mx.array) -> None:
        self._rows[layer] = rows

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.seen[layer] = Seen(keys, values, self._rows[layer])


class PredictedSequence(FullSequence):
    """A whole sequence whose rows in some layers are given: queries meet those, and the layer's own are dropped.

    Without `own` that holds for a row's own position too, unlike in generation, where the last token's own keys and
    values are real. `own` [batch, 1, rows, rows] says which queries meet which positions' own rows all the same.
    """

    def __init__(self, config: DecoderConfig, own: mx.array | None = None) -> None:
        super().__init__(config)
        self.own = own

    def give(self, decoder: Decoder, layer: int, keys: mx.array, values: mx.array) -> None:
        """Store keys, neither normalised nor rotated yet, and values, [batch, kv_heads, length, head_dim]."""
        slot = self.slots[layer]
        decoder.store(layer, keys, values, 0, self)  # type: ignore[arg-type]
        self.slots[layer] = GivenRows(slot) if self.own is None else MixedRows(slot, self.own)


class GivenRows(SequenceRows):
    """Rows that stay what they are."""

    def __init__(self, rows: SequenceRows) -> None:
        super().__init__(rows.window)
        self.rows = rows.rows

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        pass


class MixedRows(SequenceRows):
    """Given rows, or a position's own where `own` [batch, 1, rows, rows] says so; causal."""

    def __init__(self, given: SequenceRows, own: mx.array) -> None:
        super().__init__(given.window)
        self.given, self.own = given.rows, own

    def read(self, positions: Positions, queries: int) -> tuple[mx.array, mx.array, Mask]:
        assert self.rows is not None and self.given is not None
        keys, values = (mx.concatenate(pair, axis=2) for pair in zip(self.given, self.rows, strict=True))  # pyright: ignore[reportArgumentType]
        seen = mx.tril(mx.ones((queries, queries), dtype=mx.bool_))
        return keys, values, mx.concatenate([seen & ~self.own, seen & self.own], axis=-1)


def met_as_own(tokens: mx.array, near: int, real: float, least: int = 0) -> mx.array | None:
    """Which queries meet which positions' own rows, [batch, 1, rows, rows]: the last `near`, and a share `real`.

    None with `near` 0: no query meets any, its own included. With `least`, each text draws its number, from there to
    `near`. The share are runs of `RUN` tokens, drawn from a seed that the text decides, so that a step can be repeated.
    """
    if not near:
        return None
    batch, rows = tokens.shape
    seed = (tokens.astype(mx.uint32) * mx.arange(1, rows + 1, dtype=mx.uint32)).sum()
    drawn = mx.random.uniform(shape=(batch, -(-rows // RUN)), key=mx.stack([seed, mx.array(RUN, dtype=mx.uint32)]))
    chosen = mx.repeat(drawn < real, RUN, axis=1)[:, None, None, :rows]
    apart = mx.arange(rows)[:, None] - mx.arange(rows)[None, :]
    if not least:
        return chosen | (apart < near)[None, None]
    key = mx.stack([seed, mx.array(near, dtype=mx.uint32)])
    counts = mx.random.uniform(low=least, high=near + 1, shape=(batch, 1, 1, 1), key=key)
    return chosen | (apart < mx.floor(counts))


def compared_keys(decoder: Decoder, layer: int, keys: mx.array) -> mx.array:
    """Keys as the loss compares them: after their norm where that comes before the rotation, and not rotated."""
    block = decoder.blocks[layer]
    return keys if block.k_norm is None or block.rotate_first else block.k_norm(keys)


def flat(seen: Seen, kind: str) -> mx.array:
    """[batch, rows, width] of what a layer computed; heads lie side by side."""
    return seen.normed if kind == "normed" else flat_heads(getattr(seen, kind))


def flat_heads(x: mx.array) -> mx.array:
    """[batch, heads, rows, head_dim] -> [batch, rows, heads * head_dim]."""
    rows = x.transpose(0, 2, 1, 3)
    return rows.reshape(*rows.shape[:2], -1)


def projection(weights: Params, spec: LayerSpec, layer: int, part: str) -> mx.array:
    """The weights [kv_heads * head_dim, hidden] of a layer's "keys" or "values", also where one map makes all three."""
    if (role := f"layers.{layer}.{part[0]}") in weights:
        return weights[role]
    queries, width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    start = queries + (width if part == "values" else 0)
    return weights[f"layers.{layer}.qkv"][start : start + width]


def plain_maps(
    weights: Params, config: DecoderConfig, layers: Iterable[int], normed: bool
) -> dict[str, tuple[mx.array, mx.array]]:
    """Maps without a calibration: the base layers' own projections, or keys and values as they are."""
    maps = {}
    for i in layers:
        spec = config.layers[i]
        width = spec.kv_heads * spec.head_dim
        for part in PARTS:
            weight = projection(weights, spec, i, part) if normed else mx.eye(width)
            maps[f"layers.{i}.{part}"] = (weight, mx.zeros((width,)))
    return maps


def under(arrays: Params, prefix: str) -> Params:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
