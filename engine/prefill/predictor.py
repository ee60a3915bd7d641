"""The linear maps of KV Prediction (arXiv 2410.08391): from an auxiliary's keys and values to the base model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import mlx.core as mx

from russet.engine.errors import PredictorError
from russet.engine.prefill.identity import Identity, KeysValues
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder

LayerMap = tuple[int | None, ...]
"""For each base layer the auxiliary layer that feeds it; None where the base layer reads another one's rows."""

PARTS = ("keys", "values")


@dataclass(frozen=True)
class Predictor:
    """One map with bias for the keys and one for the values of every base layer that writes its own.

    `auxiliary` identifies a model, or lists the base's own layers. `weights` holds "layers.I.keys.weight" [out, in],
    "layers.I.keys.bias" [out] and the same for "values", I being the base layer, in any floating type. In and out are
    key heads times head size. Raises `PredictorError` where map, sizes and weights do not fit together.
    """

    base: Identity
    auxiliary: Identity | tuple[int, ...]
    layer_map: LayerMap
    weights: dict[str, mx.array]

    def __post_init__(self) -> None:
        count = len(self.base.keys_values)
        if not isinstance(self.auxiliary, Identity) and not all(0 <= i < count for i in self.auxiliary):
            raise PredictorError(
                f"The auxiliary's layers are {list(self.auxiliary)}, but the base has layers 0 to {count - 1} only."
            )
        _check_map(self.layer_map, self.base.keys_values, self.sources)
        shapes = expected_shapes(self.layer_map, self.base.keys_values, self.sources)
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

    def predict(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """A base layer's keys, neither normalised nor rotated yet, and values from its auxiliary layer's.

        All are [batch, kv_heads, rows, head_dim], of that layer's own sizes.
        """
        predicted = []
        for part, x in zip(PARTS, (keys, values), strict=True):
            batch, _, rows, _ = x.shape
            weight, bias = self.weights[f"layers.{layer}.{part}.weight"], self.weights[f"layers.{layer}.{part}.bias"]
            flat = x.transpose(0, 2, 1, 3).reshape(batch, rows, -1).astype(weight.dtype)
            heads = self.base.keys_values[layer]
            assert heads is not None
            predicted.append(mx.addmm(bias, flat, weight.T).reshape(batch, rows, *heads).transpose(0, 2, 1, 3))
        return predicted[0], predicted[1]

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
    layers: LayerMap, base: Sequence[KeysValues | None], sources: Sequence[KeysValues | None]
) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of all weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out, into in _maps(layers, base, sources):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)
    return shapes


def _maps(
    layers: LayerMap, base: Sequence[KeysValues | None], sources: Sequence[KeysValues | None]
) -> Iterator[tuple[str, int, int]]:
    for i, source in enumerate(layers):
        if source is not None:
            for part in PARTS:
                yield f"layers.{i}.{part}", prod(base[i] or ()), prod(sources[source] or ())


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
