"""What is measured of a trained predictor beside its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from russet.converters.recipes.base import Batch
from russet.converters.recipes.kv_forward import AUXILIARY, MAPS, flat, flat_heads, projection, under
from russet.converters.recipes.measure import means
from russet.converters.recipes.source import Params, Source
from russet.engine.prefill.predictor import PARTS

if TYPE_CHECKING:
    from russet.converters.recipes.kv_predictor import KVPredictor


def predictor_report(
    recipe: KVPredictor, params: Params, batches: Sequence[Batch], progress: Callable[[], None]
) -> dict[str, Any]:
    """Prefill's weights a token as a share of exact prefill's, and how well rows of each layer are predicted.

    `explained` is 1 minus the squared error over the variance of the base's keys and values, by layer. `start` is the
    loss of the maps that training began with.
    """
    mapped = [name for name in params if name.startswith(MAPS) and name.endswith(".weight")]
    own = {name: params[name] for name in params if name.startswith(AUXILIARY)}
    explained: dict[str, list[float]] = {name: [] for name in mapped}
    for batch in batches:
        base, auxiliary = recipe.observe(batch.tokens, under(own, AUXILIARY))
        for name in mapped:
            layer, part = name.split(".")[2:4]
            source = recipe.layer_map[int(layer)] or 0
            found = flat_heads(recipe.map_rows(params, int(layer), part, auxiliary[source])).astype(mx.float32)
            true = flat(base[int(layer)], part).astype(mx.float32)
            spread = mx.square(true - true.mean(axis=(0, 1))).sum()
            explained[name].append((1 - mx.square(found - true).sum() / spread).item())  # pyright: ignore[reportArgumentType]
        progress()
    maps = sum(params[name].size for name in mapped)
    start = recipe.start()
    return {
        "start": means(lambda batch: recipe.loss(start, batch, None, mx.array(0.0))[1], batches),
        "kept": list(recipe.kept),
        "map_weights": maps,
        "own_weights": sum(array.size for array in own.values()),
        "prefill_share": (_weights_a_row(recipe.source, recipe.kept) + maps)
        / _weights_a_row(recipe.source, range(len(recipe.source.config.layers))),
        "explained": {n.removeprefix(MAPS).removesuffix(".weight"): sum(v) / len(v) for n, v in explained.items()},
    }


def _weights_a_row(source: Source, layers: Sequence[int]) -> int:
    """Weights that a prompt's row meets in layers the last of which only has to give keys and values."""
    weights, last = source.weights, layers[-1]
    whole = [n for i in layers[:-1] for n in weights if n.startswith(f"layers.{i}.") and weights[n].ndim == 2]
    ends = [projection(weights, source.config.layers[last], last, part) for part in PARTS]
    return sum(weights[name].size for name in whole) + sum(array.size for array in ends)
