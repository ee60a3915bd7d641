"""The linear maps of KV Prediction (arXiv 2410.08391): from what an auxiliary computes to the base model's rows.

The paper's maps read the auxiliary's keys and values. Maps may read what these are made of instead, the rows after the
norm in front of attention, as SwiftKV's do (arXiv 2410.03960): a row of SmolLM2-135M has 576 numbers, its keys 192.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal

import mlx.core as mx

from russet.engine.errors import PredictorError
from russet.engine.prefill.identity import Identity, KeysValues
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder

LayerMap = tuple[int | None, ...]
"""For each base layer the auxiliary layer that feeds it; None where the base layer reads another one's rows."""

PARTS = ("keys", "values")

Inputs = Literal["keys_values", "normed"]
"""What a map reads of its auxiliary layer: keys for keys and values for values, or the normed rows for both."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an auxiliary layer computed: keys before their norm and rotation and values, [batch, kv_heads, rows,
    head_dim], and the rows that they were made of, [batch, rows, hidden]."""

    keys: mx.array
    values: mx.array
    normed: mx.array


@dataclass(frozen=True)
class Predictor:
    """One map with bias for the keys and one for the values of every base layer that writes its own.

    `auxiliary` identifies a model, or lists the base's own layers. `weights` holds "layers.I.keys.weight" [out, in],
    "layers.I.keys.bias" [out] and the same for "values", I being the base layer, in any floating type. Out is key heads
    times head size, and in as well, or the auxiliary's hidden size with normed `inputs`. `unmapped` base layers take
    their auxiliary layer's keys and values as they are. `own` has the arrays of auxiliary layers that are not the
    base's any more, by role (own_layers.py). Raises `PredictorError` where map, sizes and weights do not fit together.
    """

    base: Identity
    auxiliary: Identity | tuple[int, ...]
    layer_map: LayerMap
    weights: dict[str, mx.array]
    inputs: Inputs = "keys_values"
    unmapped: tuple[int, ...] = ()
    own: dict[str, mx.array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.base.keys_values)
        if not isinstance(self.auxiliary, Identity) and not all(0 <= i < count for i in self.auxiliary):
            raise PredictorError(
                f"The auxiliary's layers are {list(self.auxiliary)}, but the base has layers 0 to {count - 1} only."
            )
        _check_map(self.layer_map, self.base.keys_values, self.sources)
        _check_unmapped(self.unmapped, self.layer_map, self.base.keys_values, self.sources)
        if self.own and isinstance(self.auxiliary, Identity):
            raise PredictorError("Only an auxiliary made of the base's layers has layers of its own; it is damaged.")
        shapes = self.shapes
        for name, shape in shapes.items():
            array = self.weights.get(name)
            if array is None or array.shape != shape:
                found = "missing" if array is None else f"of shape {array.shape}"
                raise PredictorError(f"The predictor's {name} is {found}; its layer map asks for shape {shape}.")
        if len(self.weights) > len(shapes):
            surplus = min(self.weights.keys() - shapes.keys())
            raise PredictorError(f"The predictor holds {surplus}, which its layer map has no use for; it is damaged.")

    @classmethod
    def identity(cls, base: Decoder) -> Predictor:
        """Maps that change nothing, from all of the base's layers: what it predicts is what the base computes."""
        writers = [i for i, spec in enumerate(base.config.layers) if spec.kv_source is None]
        weights = {}
        for i in writers:
            size = base.config.layers[i].kv_heads * base.config.layers[i].head_dim
            for part in PARTS:
                weights[f"layers.{i}.{part}.weight"] = mx.eye(size)
                weights[f"layers.{i}.{part}.bias"] = mx.zeros((size,))
        layers = tuple(range(len(base.config.layers)))
        return cls(Identity.of(base), layers, layer_map(base.config, layers), weights)

    @property
    def sources(self) -> tuple[KeysValues | None, ...]:
        """Key heads and head size of each auxiliary layer."""
        if isinstance(self.auxiliary, Identity):
            return self.auxiliary.keys_values
        return tuple(self.base.keys_values[i] for i in self.auxiliary)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of all weights."""
        known = self.auxiliary if isinstance(self.auxiliary, Identity) else self.base
        width = known.hidden_dim if self.inputs == "normed" else None
        mapped = [None if i in self.unmapped else source for i, source in enumerate(self.layer_map)]
        return expected_shapes(mapped, self.base.keys_values, self.sources, width)

    def predict(self, layer: int, seen: Seen) -> tuple[mx.array, mx.array]:
        """A base layer's keys, neither normalised nor rotated yet, and values from what its auxiliary layer computed.

        Both are [batch, kv_heads, rows, head_dim] of the base layer's sizes.
        """
        if layer in self.unmapped:
            return seen.keys, seen.values
        heads = self.base.keys_values[layer]
        assert heads is not None
        predicted = []
        for part, x in zip(PARTS, self._inputs_of(seen), strict=True):
            weight, bias = self.weights[f"layers.{layer}.{part}.weight"], self.weights[f"layers.{layer}.{part}.bias"]
            rows = mx.addmm(bias, x.astype(weight.dtype), weight.T)
            predicted.append(rows.reshape(*x.shape[:2], *heads).transpose(0, 2, 1, 3))
        return predicted[0], predicted[1]

    def predict_all(self, seen: Mapping[int, Seen]) -> Iterator[tuple[int, mx.array, mx.array]]:
        """Every base layer fed by one of `seen` with its keys and values, as `predict` gives them.

        Maps of the same rows are one product, since a matrix of 192 columns is too slim to multiply at full speed.
        """
        for layer, source in enumerate(self.layer_map):
            if source in seen and (layer in self.unmapped or self.inputs != "normed"):
                yield layer, *self.predict(layer, seen[source])  # pyright: ignore[reportArgumentType]
        for source, (layers, weight, bias) in self._joined.items():
            if source not in seen:
                continue
            x = seen[source].normed
            rows, at = mx.addmm(bias, x.astype(weight.dtype), weight), 0
            for layer in layers:
                heads = self.base.keys_values[layer] or (0, 0)
                parts = [rows[..., at + i * prod(heads) : at + (i + 1) * prod(heads)] for i in range(2)]
                keys, values = (part.reshape(*x.shape[:2], *heads).transpose(0, 2, 1, 3) for part in parts)
                yield layer, keys, values
                at += 2 * prod(heads)

    @cached_property
    def _joined(self) -> dict[int, tuple[list[int], mx.array, mx.array]]:
        """For each auxiliary layer whose rows are read, the layers that it feeds and all their maps, [in, out]."""
        joined = {}
        for source in sorted({j for j in self.layer_map if j is not None}) if self.inputs == "normed" else []:
            layers = [i for i, j in enumerate(self.layer_map) if j == source and i not in self.unmapped]
            if layers:
                names = [f"layers.{i}.{part}" for i in layers for part in PARTS]
                weight, bias = (
                    mx.concatenate([self.weights[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias")
                )
                mx.eval(weight, bias)
                joined[source] = layers, weight.T, bias
        return joined

    def _inputs_of(self, seen: Seen) -> tuple[mx.array, mx.array]:
        """What the maps for keys and for values read, [batch, rows, in]."""
        if self.inputs == "normed":
            return seen.normed, seen.normed
        keys, values = (x.transpose(0, 2, 1, 3) for x in (seen.keys, seen.values))
        return keys.reshape(*keys.shape[:2], -1), values.reshape(*values.shape[:2], -1)

    def astype(self, dtype: mx.Dtype) -> Predictor:
        """The same maps in another number format."""
        return replace(self, weights={name: array.astype(dtype) for name, array in self.weights.items()})


def layer_map(base: DecoderConfig, auxiliary: DecoderConfig | Sequence[int]) -> LayerMap:
    """The paper's map (table 1), over the layers that write keys and values.

    From a smaller model, early auxiliary layers are repeated and later ones are mapped one to one. From a list of the
    base's own layers, each base layer is fed by the last kept one that is not after it. Raises `PredictorError` where
    the auxiliary has more such layers than the base, or none.
    """
    writers = _writers(base)
    if isinstance(auxiliary, DecoderConfig):
        sources = _writers(auxiliary)
        feeding = [sources[i] for i in spread(len(sources), len(writers))]
    else:
        kept = [(layer, i) for i, layer in enumerate(auxiliary) if layer in writers]
        if not kept:
            raise PredictorError("None of the auxiliary's layers writes keys and values; keep one that does.")
        feeding = [max((pair for pair in kept if pair[0] <= layer), default=kept[0])[1] for layer in writers]
    fed = dict(zip(writers, feeding, strict=True))
    return tuple(fed.get(i) for i in range(len(base.layers)))


def spread(auxiliary: int, base: int) -> list[int]:
    """`base` layers fed in order by `auxiliary` ones, each by turns often enough, the surplus going to early layers."""
    if auxiliary > base:
        raise PredictorError(
            f"The auxiliary has {auxiliary} layers with keys and values and the base only {base}; the auxiliary must "
            "be the smaller one."
        )
    times, surplus = divmod(base, auxiliary)
    return [i for i in range(auxiliary) for _ in range(times + (i < surplus))]


def expected_shapes(
    layers: Sequence[int | None],
    base: Sequence[KeysValues | None],
    sources: Sequence[KeysValues | None],
    width: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of all weights; `width` is that of the rows that the maps read, None for keys and values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, source in enumerate(layers):
        if source is not None:
            out, into = prod(base[i] or ()), width or prod(sources[source] or ())
            for part in PARTS:
                name = f"layers.{i}.{part}"
                shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)
    return shapes


def _check_unmapped(
    unmapped: Sequence[int],
    layers: LayerMap,
    base: Sequence[KeysValues | None],
    sources: Sequence[KeysValues | None],
) -> None:
    for i in unmapped:
        source = layers[i] if 0 <= i < len(layers) else None
        if source is None or base[i] != sources[source]:
            raise PredictorError(
                f"The predictor takes the rows of layer {i} as its auxiliary computes them, but that layer is not fed "
                "by one of its own sizes; it is damaged."
            )


def _check_map(layers: LayerMap, base: Sequence[KeysValues | None], sources: Sequence[KeysValues | None]) -> None:
    if len(layers) != len(base):
        raise PredictorError(f"The predictor's layer map has {len(layers)} entries, but its base {len(base)} layers.")
    for i, source in enumerate(layers):
        if (source is None) != (base[i] is None):
            raise PredictorError(
                f"The predictor's layer map feeds layer {i} from {source}; layers that write keys and values must be "
                "fed, and no others."
            )
        if source is not None and (not 0 <= source < len(sources) or sources[source] is None):
            raise PredictorError(
                f"The predictor's layer map feeds layer {i} from auxiliary layer {source}, which has no keys and "
                f"values; the auxiliary has {len(sources)} layers."
            )


def _writers(config: DecoderConfig) -> list[int]:
    return [i for i, spec in enumerate(config.layers) if spec.kv_source is None]
