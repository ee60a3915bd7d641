"""Projections with which layers make do with another layer's keys and values, solved for on text.

A layer that is to read an earlier layer's rows has queries that look for its own keys, and an output projection for its
own values. Its own rows tell how each key head that is read can stand in for one of its own:

- values: ridge regression finds the matrix from the head's values to the own ones; the output projection takes it in;
- keys: what commutes with a rotation is a factor and an angle for each rotated pair; those with the least squared error
  to the own keys go into the queries. Keys are taken before their rotation, where rows are on one scale.

Which head stands in for which is chosen greedily, by how much of both is explained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.converters.recipes.forward import decoder_of, hidden_rows
from russet.converters.recipes.source import Params, Source
from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig, LayerSpec
from russet.models.decoder import Probe

RIDGE = 1e-3
"""Penalty of the values' regression, in mean squares of an input."""


def fit_readers(source: Source, readers: Mapping[int, int], batches: Sequence[mx.array]) -> Params:
    """Roles `layers.I.q`, `layers.I.o` and perhaps `layers.I.q.bias` for layers that read the rows of others.

    `readers` maps a layer to the one whose rows it reads; `batches` are token ids [batch, length]. Under a norm of the
    queries their size says nothing, so keys are not fitted there. Raises InvalidOptionError where heads differ.
    """
    config = source.config
    for reader, slot in readers.items():
        _refuse_other_heads(config, reader, slot)
    sums = {reader: _Sums(config.layers[reader]) for reader in readers}
    decoder = decoder_of(config, source.weights, mx.float32)
    for tokens in batches:
        for row in range(len(tokens)):
            probe = _Rows({*readers, *readers.values()})
            mx.eval(hidden_rows(decoder, tokens[row : row + 1], probe=probe).final, probe.seen)
            for reader, slot in readers.items():
                sums[reader].add(probe.seen[slot], probe.seen[reader])
    found: Params = {}
    for reader in readers:
        found |= _folded(source, reader, sums[reader].solve(keys=config.qk_norm == "none"))
    return found


def _refuse_other_heads(config: DecoderConfig, reader: int, slot: int) -> None:
    a, b = config.layers[reader], config.layers[slot]
    if (a.kv_heads, a.head_dim, a.rope) != (b.kv_heads, b.head_dim, b.rope):
        raise InvalidOptionError(
            f"Layer {reader} has {a.kv_heads} heads of {a.head_dim} for keys and layer {slot}, whose it is to read, "
            f"{b.kv_heads} of {b.head_dim}, or another rotation; rows can fade out there: set blend=0.1."
        )


class _Rows(Probe):
    def __init__(self, layers: set[int]) -> None:
        self.layers = layers
        self.seen: dict[int, tuple[mx.array, mx.array]] = {}

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        if layer in self.layers:
            self.seen[layer] = keys, values


@dataclass(frozen=True, slots=True)
class StandIn:
    """An own head that a shared one stands in for: own values are shared ones times `values` [head_dim, head_dim], own
    keys are nearly shared ones times `keys`, a complex number a pair and a real one a feature that is not rotated."""

    own: int
    values: np.ndarray
    keys: np.ndarray | None


class _Sums:
    """Products of a slot's rows with a reader's, summed over text: [shared head, own head, ...], float64."""

    def __init__(self, spec: LayerSpec) -> None:
        self._spec = spec
        self._parts: list[np.ndarray] | None = None

    def add(self, shared: tuple[mx.array, mx.array], own: tuple[mx.array, mx.array]) -> None:
        """Keys before their rotation, and values, [1, kv_heads, rows, head_dim], of both layers."""
        (keys, values), (own_keys, own_values) = shared, own
        a, b, c = _pairs(self._spec, keys[0, :, None])
        x, y, z = _pairs(self._spec, own_keys[0, None])
        plain = mx.stack([(a * x + b * y).sum(2), (a * y - b * x).sum(2)])
        parts = [
            values[0].transpose(0, 2, 1) @ values[0],
            values[0][:, None].transpose(0, 1, 3, 2) @ own_values[0][None],
            mx.square(own_values[0]).sum((1, 2)),
            plain,
            (mx.square(a) + mx.square(b)).sum(2)[:, 0],
            (c * z).sum(2),
            mx.square(c).sum(2)[:, 0],
            mx.square(own_keys[0]).sum((1, 2)),
        ]
        mx.eval(parts)
        new = [np.array(part).astype(np.float64) for part in parts]
        self._parts = new if self._parts is None else [old + more for old, more in zip(self._parts, new, strict=True)]

    def solve(self, keys: bool) -> list[StandIn]:
        """For each shared head, the own one that it stands in for."""
        assert self._parts is not None
        squares, products, own_squares, turned, pair_squares, plain, plain_squares, key_squares = self._parts
        dim = squares.shape[1]
        strength = RIDGE * np.trace(squares, axis1=1, axis2=2)[:, None, None] / dim * np.eye(dim)
        maps = np.linalg.solve((squares + strength)[:, None], products)
        explained = (maps * products).sum((2, 3)) / own_squares
        factors = (turned[0] + 1j * turned[1]) / np.maximum(pair_squares[:, None], 1e-30)
        reals = plain / np.maximum(plain_squares[:, None], 1e-30)
        if keys:
            energy = (np.abs(factors) ** 2 * pair_squares[:, None]).sum(2) + (reals * plain).sum(2)
            explained = explained + energy / key_squares
        both = np.concatenate([factors, reals], axis=2)
        chosen = one_each(explained)
        return [StandIn(own, maps[a, own], both[a, own] if keys else None) for a, own in enumerate(chosen)]


def one_each(worth: np.ndarray) -> list[int]:
    """For each row of a square the column that it gets, each column once, the worthiest pair first."""
    left, chosen = worth.copy(), [0] * len(worth)
    for _ in chosen:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        chosen[row] = int(column)
        left[row], left[:, column] = -np.inf, -np.inf
    return chosen


def _pairs(spec: LayerSpec, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The first and second features of each rotated pair, and those that are not rotated."""
    turned, rest = x[..., : spec.rope.dims], x[..., spec.rope.dims :]
    if spec.rope.interleaved:
        return turned[..., 0::2], turned[..., 1::2], rest
    half = spec.rope.dims // 2
    return turned[..., :half], turned[..., half:], rest


def _folded(source: Source, layer: int, stand_ins: list[StandIn]) -> Params:
    """The layer's queries and output projection for the heads that stand in, in the order of the shared heads."""
    spec, names = source.config.layers[layer], [f"layers.{layer}.q", f"layers.{layer}.q.bias"]
    group, dim = spec.heads // spec.kv_heads, spec.head_dim
    found: Params = {}
    for name in names:
        if name in source.weights:
            rows = source.weights[name].reshape(spec.kv_heads, group, dim, -1)
            parts = [_turned(spec, rows[stand_in.own], stand_in.keys) for stand_in in stand_ins]
            found[name] = mx.stack(parts).reshape(source.weights[name].shape)
    out = source.weights[f"layers.{layer}.o"]
    columns = out.reshape(-1, spec.kv_heads, group, dim)
    parts = [columns[:, each.own] @ mx.array(each.values.T.astype(np.float32)) for each in stand_ins]
    return found | {f"layers.{layer}.o": mx.stack(parts, axis=1).reshape(out.shape)}


def _turned(spec: LayerSpec, rows: mx.array, keys: np.ndarray | None) -> mx.array:
    """Query rows [group, head_dim, hidden], each pair times the conjugate of its keys' factor."""
    if keys is None:
        return rows
    a, b, rest = _pairs(spec, rows.transpose(0, 2, 1))
    pairs = spec.rope.dims // 2
    real, imaginary = (mx.array(part.astype(np.float32)) for part in (keys[:pairs].real, keys[:pairs].imag))  # pyright: ignore[reportAttributeAccessIssue]
    first, second = real * a + imaginary * b, real * b - imaginary * a
    rest = rest * mx.array(keys[pairs:].real.astype(np.float32))  # pyright: ignore[reportAttributeAccessIssue]
    if spec.rope.interleaved:
        turned = mx.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
    else:
        turned = mx.concatenate([first, second], axis=-1)
    return mx.concatenate([turned, rest], axis=-1).transpose(0, 2, 1)
