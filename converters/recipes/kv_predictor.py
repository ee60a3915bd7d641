"""A predictor for KV Prediction (arXiv 2410.08391), trained on a frozen base with an auxiliary made of its layers.

The auxiliary keeps some of the base's layers. Those that it shares with the base from the first layer on compute what
they compute in the base, so their keys and values are exact; linear maps predict the other layers'. Ridge regression
finds the maps to start from, and distillation trains them, and the auxiliary's last layers where that is asked for,
through the frozen base:

    loss = kl KL(base on true rows || base on predicted rows) + ce CE(base on predicted rows)
           + auxiliary CE(auxiliary) + l1 / layers * sum over layers of (L1 of keys + L1 of values)

The paper's own settings are layers="spread", inputs="keys_values", trained=all of them, ce=1, auxiliary=1, kl=0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import mlx.core as mx

from russet.converters.recipes.base import Batch, Loss, Objective, Options, Recipe, Teacher, Treatment
from russet.converters.recipes.forward import FullSequence, Rows, decoder_of, head_of
from russet.converters.recipes.kv_forward import (
    AUXILIARY,
    MAPS,
    PredictedSequence,
    Watch,
    compared_keys,
    flat,
    met_as_own,
    plain_maps,
    under,
)
from russet.converters.recipes.kv_report import predictor_report
from russet.converters.recipes.losses import head_loss
from russet.converters.recipes.ridge import Ridge
from russet.converters.recipes.source import Params, Source
from russet.engine.cache import KVCache
from russet.engine.errors import InvalidOptionError, UnsupportedModelError
from russet.engine.prefill.identity import Identity
from russet.engine.prefill.predictor import PARTS, Inputs, Predictor, Seen, layer_map
from russet.engine.prefill.predictor_folder import write_predictor
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder
from russet.models.layer_pruned import first_layers, pruned_config, spread_layers

_RIDGE = 1e-3
_LAYERS = {"first": first_layers, "spread": spread_layers}


@dataclass(frozen=True, slots=True)
class PredictorOptions(Options):
    """`keep` is the share of the base's layers in the auxiliary, `layers` which ones: "first" or evenly "spread".

    `inputs` is what the maps read, "normed" rows or "keys_values". `trained` counts the auxiliary's last layers that
    get weights of their own, before a last one of which only the norm counts. A query meets the own rows of the last
    `near` tokens, or of fewer down to `least`, as each text draws it, and of a share `real` of all. `l1` and
    `auxiliary` are weights of the loss.
    """

    keep: float = 0.5
    layers: str = "first"
    inputs: str = "normed"
    trained: int = 0
    near: int = 0
    least: int = 0
    real: float = 0.0
    l1: float = 1.0
    auxiliary: float = 0.0


class KVPredictor(Recipe):
    """Maps from a layer-pruned auxiliary to the base's keys and values; the base stays as it is."""

    name = "kv_predictor"
    summary = "an auxiliary of half the layers, and maps from it to the whole model's keys and values"
    options_type: ClassVar[type[Options]] = PredictorOptions
    objective: ClassVar[Objective] = Objective(kl=1.0)
    calibration_tokens: ClassVar[int] = 1 << 15
    makes_model: ClassVar[bool] = False

    def open(self, source: Source, dtype: mx.Dtype, teacher: Source | None = None) -> None:
        super().open(source, dtype, teacher)
        options = self._options
        if any(layer.kv_source is not None for layer in source.config.layers):
            raise UnsupportedModelError(
                "The source's layers share keys and values, for which no predictor is trained; give the model that it "
                "was made from."
            )
        if options.layers not in _LAYERS:
            raise InvalidOptionError(f"layers is {options.layers!r}; it must be {' or '.join(_LAYERS)}.")
        if options.inputs not in get_args(Inputs):
            raise InvalidOptionError(f"inputs is {options.inputs!r}; it must be {' or '.join(get_args(Inputs))}.")
        self.kept = _LAYERS[options.layers](source.config, options.keep)
        # Maps read no more of the last layer than its norm, whose weights they can take over.
        whole = len(self.kept) - (options.inputs == "normed" and not options.auxiliary)
        if not 0 <= options.trained <= whole:
            raise InvalidOptionError(
                f"trained is {options.trained}, but the auxiliary has {whole} layers to train; give at most that many."
            )
        if not 0 <= options.least <= options.near or not 0 <= options.real < 1 or (options.real and not options.near):
            raise InvalidOptionError(
                f"near is {options.near}, least {options.least} and real {options.real}; near must be a number of "
                "tokens, least no larger one, real a share below 1, and real tokens need near ones."
            )
        if options.near and any(layer.window for layer in source.config.layers):
            raise UnsupportedModelError(
                "Rows of a pass's own are not mixed in under attention windows; leave near out."
            )
        self.layer_map = layer_map(source.config, self.kept)
        self.own = range(whole - options.trained, whole)
        self.shared = _common(self.kept[: self.own.start] if options.trained else self.kept)
        """How many first layers compute the same in the base and in the auxiliary."""
        self.unmapped = tuple(i for i in range(self.shared) if self.layer_map[i] is not None)
        self.tail = _tail(pruned_config(source.config, self.kept), self.shared)
        self._base = {name: array.astype(dtype) for name, array in source.weights.items()}
        mx.eval(self._base)
        self._solved: dict[str, tuple[mx.array, mx.array]] = {}

    @property
    def _options(self) -> PredictorOptions:
        assert isinstance(self.options, PredictorOptions)
        return self.options

    @property
    def needs_teacher(self) -> bool:
        """No: the base is both teacher and student here, and its first layers run once for both."""
        return False

    @property
    def learns(self) -> bool:
        return super().learns or bool(self._options.l1 or self._options.auxiliary)

    @property
    def mapped(self) -> list[int]:
        """The base layers whose keys and values are predicted."""
        return [i for i, source in enumerate(self.layer_map) if source is not None and i not in self.unmapped]

    def calibrate(self, batches: Sequence[Batch]) -> None:
        """Find the maps with the least squared error over some text, for the auxiliary as it is at the start."""
        regressions = {self._input(i, part): Ridge() for i in self.mapped for part in PARTS}
        start = self._auxiliary_start()
        for batch in batches:
            base, auxiliary = self.observe(batch.tokens, start)
            mx.eval([[seen.keys, seen.values, seen.normed] for seen in [*base.values(), *auxiliary.values()]])
            for (source, kind), ridge in regressions.items():
                fed = {
                    f"layers.{i}.{p}": flat(base[i], p)
                    for i in self.mapped
                    for p in PARTS
                    if self._input(i, p) == (source, kind)
                }
                ridge.add(flat(auxiliary[source], kind), fed)
        for ridge in regressions.values():
            self._solved |= ridge.solve(_RIDGE)

    def start(self) -> Params:
        """The maps from `calibrate`, and the auxiliary's trained layers as the base has them."""
        params = {AUXILIARY + name: array for name, array in self._auxiliary_start().items()}
        normed = self._options.inputs == "normed"
        solved = self._solved or plain_maps(self.source.weights, self.source.config, self.mapped, normed)
        for name, (weight, bias) in solved.items():
            params[f"{MAPS}{name}.weight"], params[f"{MAPS}{name}.bias"] = weight, bias
        return params

    def treatment(self, name: str) -> Treatment:
        return Treatment(decays=name.startswith(AUXILIARY) and not name.endswith(("norm", ".bias")))

    def loss(self, params: Params, batch: Batch, teacher: Teacher | None, at: mx.array) -> Loss:
        base, h, watch = self._shared_rows(batch.tokens)
        count = len(base.blocks)
        true = base.run(h, range(self.shared, count), 0, _as_cache(FullSequence(base.config)), probe=watch)
        truth = Teacher(Rows(mx.stop_gradient(base.norm(true)), []), head_of(base))
        seen, last = self._auxiliary(params, h, watch)
        own = met_as_own(batch.tokens, self._options.near, self._options.real, self._options.least)
        predicted, terms = self._rows(params, base, seen, watch, own)
        rows = Rows(base.norm(base.run(h, range(self.shared, count), 0, _as_cache(predicted))), [])
        wanted = self.weights_of_loss
        total, heads = head_loss(rows, base, batch.labels, truth, wanted.kl, wanted.ce)
        terms |= heads
        total = total + self._options.l1 * (terms["l1_keys"] + terms["l1_values"])
        if self._options.auxiliary:
            alone, found = head_loss(Rows(base.norm(last), []), base, batch.labels, truth, 0.0, 1.0)
            terms["auxiliary"] = found["ce"]
            total = total + self._options.auxiliary * alone
        return total, terms

    def write(self, folder: Path, params: Params) -> None:
        """A predictor's folder (engine/prefill/predictor_folder.py), in 8 bits."""
        write_predictor(self.predictor(params), folder, packed=True)

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        """What kv_report.py measures."""
        return predictor_report(self, params, batches, progress)

    def predictor(self, params: Params) -> Predictor:
        """The predictor of the trained arrays."""
        weights = {n.removeprefix(MAPS): a.astype(mx.float16) for n, a in params.items() if n.startswith(MAPS)}
        own = {n.removeprefix(AUXILIARY): a for n, a in params.items() if n.startswith(AUXILIARY)}
        base = Identity.of(decoder_of(self.source.config, self.source.weights, mx.float32), self.source.folder.name)
        return Predictor(
            base, self.kept, self.layer_map, weights, cast(Inputs, self._options.inputs), self.unmapped, own
        )

    def _shared_rows(self, tokens: mx.array) -> tuple[Decoder, mx.array, Watch]:
        """The frozen base, rows behind the layers that the auxiliary shares, and what those layers computed."""
        base, watch = decoder_of(self.source.config, self._base, self.dtype), Watch()
        cache = _as_cache(FullSequence(base.config))
        h = base.run(base.embed(tokens), range(self.shared), 0, cache, probe=watch)
        return base, mx.stop_gradient(h), watch

    def _auxiliary(self, params: Params, h: mx.array, watch: Watch) -> tuple[dict[int, Seen], mx.array]:
        """What each auxiliary layer computed, by its number in the auxiliary, and its last rows."""
        seen = {j: watch.seen[j] for j in range(self.shared) if j in watch.seen}
        if not self.tail.layers:
            return seen, h
        decoder, own = decoder_of(self.tail, self._tail_arrays(params), self.dtype), Watch()
        last = None if self._options.auxiliary else 0
        h = decoder.run(h, range(len(self.tail.layers)), 0, _as_cache(FullSequence(self.tail)), last, own)
        return seen | {self.shared + j: found for j, found in own.seen.items()}, h

    def _tail_arrays(self, params: Params) -> Params:
        arrays = {name: array for name, array in self._base.items() if not name.startswith("layers.")}
        for j in range(self.shared, len(self.kept)):
            arrays |= _layer(self._base, self.kept[j], j - self.shared)
            arrays |= _layer(under(params, AUXILIARY), j, j - self.shared)
        return arrays

    def _rows(
        self, params: Params, base: Decoder, seen: dict[int, Seen], watch: Watch, own: mx.array | None = None
    ) -> tuple[PredictedSequence, dict[str, mx.array]]:
        """The base's cache with predicted rows, and how far these are from the true ones."""
        cache, apart = PredictedSequence(base.config, own), {part: mx.array(0.0) for part in PARTS}
        for i in self.mapped:
            source = self.layer_map[i]
            assert source is not None
            keys, values = (self.map_rows(params, i, part, seen[source]) for part in PARTS)
            true = watch.seen[i]
            pairs = ((compared_keys(base, i, keys), compared_keys(base, i, true.keys)), (values, true.values))
            for part, (ours, theirs) in zip(PARTS, pairs, strict=True):
                theirs = mx.stop_gradient(theirs).astype(mx.float32)
                apart[part] = apart[part] + mx.abs(ours.astype(mx.float32) - theirs).mean()
            cache.give(base, i, keys, values)
        return cache, {f"l1_{part}": total / len(base.blocks) for part, total in apart.items()}

    def map_rows(self, params: Params, layer: int, part: str, seen: Seen) -> mx.array:
        name, spec = f"{MAPS}layers.{layer}.{part}", self.source.config.layers[layer]
        weight, bias = (params[f"{name}.{kind}"].astype(self.dtype) for kind in ("weight", "bias"))
        x = flat(seen, part if self._options.inputs == "keys_values" else "normed")
        rows = x @ weight.T + bias
        return rows.reshape(*rows.shape[:2], spec.kv_heads, spec.head_dim).transpose(0, 2, 1, 3)

    def _auxiliary_start(self) -> Params:
        """The trained layers of the auxiliary as the base has them."""
        arrays: Params = {}
        for j in self.own:
            arrays |= _layer(self.source.weights, self.kept[j], j)
        return arrays

    def observe(self, tokens: mx.array, own: Params) -> tuple[dict[int, Seen], dict[int, Seen]]:
        """What all layers of the base and of the auxiliary compute of some text."""
        base, h, watch = self._shared_rows(tokens)
        cache = _as_cache(FullSequence(base.config))
        base.run(h, range(self.shared, len(base.blocks)), 0, cache, last=0, probe=watch)
        params = {AUXILIARY + name: array for name, array in own.items()}
        return watch.seen, self._auxiliary(params, h, watch)[0]

    def _input(self, layer: int, part: str) -> tuple[int, str]:
        """Which auxiliary layer a map reads, and what of it."""
        source = self.layer_map[layer]
        assert source is not None
        return source, part if self._options.inputs == "keys_values" else "normed"


def _common(kept: Sequence[int]) -> int:
    """How many of the layers are 0, 1, 2, ..."""
    return next((j for j, layer in enumerate(kept) if layer != j), len(kept))


def _tail(config: DecoderConfig, start: int) -> DecoderConfig:
    return replace(config, layers=config.layers[start:])


def _layer(arrays: Params, layer: int, new: int) -> Params:
    """One layer's arrays under another number."""
    prefix = f"layers.{layer}."
    return {f"layers.{new}.{n.removeprefix(prefix)}": array for n, array in arrays.items() if n.startswith(prefix)}


def _as_cache(rows: FullSequence) -> KVCache:
    """The decoder asks of its cache no more than the two calls of a slot."""
    return cast(KVCache, rows)
