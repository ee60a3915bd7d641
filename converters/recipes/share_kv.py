"""The last 3/8 of the layers read an earlier layer's keys and values (Apple's on-device model of 2025, split 5:3).

Their key and value projections go; prefill needs none of their work, and the cache none of their rows. Their queries
and output projections are solved for at the start, so that they make do with the rows they read (reader_fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.base import Batch, Exported, Loss, Objective, Options, Recipe, Teacher
from russet.converters.recipes.forward import FullSequence, SequenceRows, decoder_of, rows_after
from russet.converters.recipes.losses import head_loss, hidden_loss
from russet.converters.recipes.reader_fit import fit_readers
from russet.converters.recipes.source import Params
from russet.engine.cache import KVCache
from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder
from russet.models.families import read_decoder
from russet.models.rope import Positions
from russet.models.variant import set_kv_sources


@dataclass(frozen=True, slots=True)
class ShareOptions(Options):
    """`share` is the part of the layers that lose their keys and values, counted from the end.

    They read the rows of the last `slots` layers before them, by turns: with 1 all those of the last one. Their queries
    and output projections are solved for before the first step; with `blend`, their own rows fade out instead over that
    part of the training. `trained` is "all", or "readers" for the layers from the first one on whose rows are shared,
    and the last norm: what comes before stays the source's.
    """

    parts: ClassVar[tuple[str, ...]] = ("blend",)

    share: float = 3 / 8
    slots: int = 1
    blend: float = 0.0
    trained: str = "all"


class ShareKV(Recipe):
    """Cross-layer sharing of keys and values, repaired by distillation."""

    name = "share_kv"
    summary = "the last 3/8 of the layers read an earlier layer's keys and values"
    options_type: ClassVar[type[Options]] = ShareOptions
    objective: ClassVar[Objective] = Objective(kl=1.0, hidden=0.5)
    calibration_tokens: ClassVar[int] = 1 << 15

    def __init__(self, options: Options | None = None, objective: Objective | None = None) -> None:
        super().__init__(options, objective)
        self._fitted: Params = {}

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        options = share_options(self.options)
        return share_last(raw, options.share, options.slots)

    def calibrate(self, batches: Sequence[Batch]) -> None:
        if not share_options(self.options).blend:
            self._fitted = fit_readers(self.source, readers_of(self.config), [batch.tokens for batch in batches])

    def start(self) -> Params:
        weights = self.source.weights if share_options(self.options).blend else super().start()
        return {name: array for name, array in weights.items() if name not in self._fixed} | self._fitted

    def weights(self, params: Params, at: mx.array) -> Params:
        return self._fixed | params

    @cached_property
    def _fixed(self) -> Params:
        """The source's arrays that are not trained."""
        if share_options(self.options).trained == "all":
            return {}
        first = self._first
        return {name: array for name, array in self.source.weights.items() if _layer(name) < first}

    @property
    def _first(self) -> int:
        """The first layer whose rows are shared."""
        return min(readers_of(self.config).values())

    def decoder(self, params: Params, at: mx.array) -> Decoder:
        config = self.source.config if share_options(self.options).blend else self.config
        return decoder_of(config, self.weights(params, at), self.dtype)

    def sequence(self, decoder: Decoder, at: mx.array) -> FullSequence:
        return blended(self.config, at, share_options(self.options).blend)

    def loss(self, params: Params, batch: Batch, teacher: Teacher | None, at: mx.array) -> Loss:
        """As of every recipe; layers that stay the teacher's are not run again, where its outputs are kept."""
        first, wanted = self._first, self.weights_of_loss
        if not self._fixed or self.teacher is not self.source or teacher is None or not teacher.rows.layers:
            return super().loss(params, batch, teacher, at)
        decoder = self.decoder(params, at)
        rows = rows_after(decoder, teacher.rows.layers[first - 1], first, self.sequence(decoder, at))
        total, terms = head_loss(rows, decoder, batch.labels, teacher, wanted.kl, wanted.ce)
        terms["hidden"] = hidden_loss(rows.layers, teacher.rows.layers[first:])
        return total + wanted.hidden * terms["hidden"], terms

    def export(self, params: Params) -> Exported:
        return super().export(owned(params, self.source.family.names(self.config)))

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        return kv_report(self.source.config, self.config)


def readers_of(config: DecoderConfig) -> dict[int, int]:
    """Layers that read another's rows, and whose."""
    return {i: layer.kv_source for i, layer in enumerate(config.layers) if layer.kv_source is not None}


def owned(params: Params, roles: Mapping[str, str]) -> Params:
    """The arrays that the result has: without the keys' and values' projections that faded out."""
    return {name: array for name, array in params.items() if name.removesuffix(".bias") in roles}


def _layer(name: str) -> float:
    """The layer of an array: before all others for the embedding, after them for the last norm and the head."""
    if name.startswith("layers."):
        return int(name.split(".")[1])
    return -1 if name == "embed" else math.inf


def share_options(options: Options) -> ShareOptions:
    """The options, checked."""
    assert isinstance(options, ShareOptions)
    if options.trained not in ("all", "readers"):
        raise InvalidOptionError(f"trained is {options.trained!r}; it is 'all' or 'readers'.")
    return options


class Blended(FullSequence):
    """Rows of layers that are to read a source layer's: `done` of the source's and the rest of their own."""

    def __init__(self, config: DecoderConfig, done: mx.array) -> None:
        super().__init__(config)
        self._readers = {i: BlendedRows(self.slots[source], done) for i, source in readers_of(config).items()}

    def slot(self, layer: int) -> SequenceRows:
        return self._readers.get(layer) or super().slot(layer)


class BlendedRows(SequenceRows):
    """One reader's rows."""

    def __init__(self, source: SequenceRows, done: mx.array) -> None:
        super().__init__(source.window)
        self._source, self._done = source, done

    def append(self, keys: mx.array, values: mx.array, positions: Positions) -> None:
        assert self._source.rows is not None
        done = self._done.astype(keys.dtype)
        theirs = zip((keys, values), self._source.rows, strict=True)
        mixed = [own * (1 - done) + shared * done for own, shared in theirs]
        super().append(mixed[0], mixed[1], positions)


def blended(config: DecoderConfig, at: mx.array, blend: float) -> FullSequence:
    """The rows at a point of the training; without a blend the shared ones from the start."""
    return Blended(config, mx.minimum(1.0, at / blend)) if blend else FullSequence(config)


def kv_report(before: DecoderConfig, after: DecoderConfig) -> dict[str, Any]:
    """Bytes of keys and values a token at 16 bits, and the share of layers that an exact prefill of many rows runs."""

    def nbytes(config: DecoderConfig) -> int:
        return KVCache(config, mx.bfloat16).bytes_per_position

    return {
        "kv_bytes_per_token": {"before": nbytes(before), "after": nbytes(after)},
        "prefill_layers": {"before": before.last_writer + 1, "after": after.last_writer + 1},
    }


def share_last(raw: dict[str, Any], share: float, slots: int = 1) -> dict[str, Any]:
    """config.json with the last `share` of its layers reading the last `slots` layers before them, by turns.

    The first reader reads the last of those, the second the one before it.
    """
    layers = read_decoder(raw).layers
    readers = int(share * len(layers))
    if not 0 < readers < len(layers):
        raise InvalidOptionError(
            f"A share of {share} leaves {readers} of {len(layers)} layers to read another's keys and values; it must "
            "be one at least and not all."
        )
    if any(layer.kv_source is not None for layer in layers):
        raise InvalidOptionError("Some of the source's layers share keys and values already; give a model without.")
    owners = len(layers) - readers
    if not 0 < slots <= min(owners, readers):
        raise InvalidOptionError(
            f"slots is {slots}, but {readers} layers are to read those of {owners}; give 1 to {min(owners, readers)}."
        )
    return set_kv_sources(raw, [None] * owners + [owners - 1 - i % slots for i in range(readers)])
