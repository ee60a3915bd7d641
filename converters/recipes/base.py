"""The contract of a recipe: what it changes in a model, what it trains, by which loss, and what it writes.

A recipe is a subclass of `Recipe` in a file of its own, registered in `RECIPES`. The trainer calls, in this order,

    configure(raw)            config.json of the source -> config.json of the result, which says the new architecture
    calibrate(batches)        a look at some text, for starts that are solved for
    start()                   the trained arrays, float32, by name
    loss(params, ...)         inside a compiled and differentiated step, with the arrays that `start` named
    export(params)            what is written, as a model folder; `write` is for anything else
    report(params, ...)       what the recipe measures of its result

and every method but the first has a default that serves a recipe which only changes the architecture. A parameter is
named after the role of its tensor (models/families/base.py), `layers.3.q`, or `layers.3.q.bias`; a recipe adds names of
its own. All randomness comes from keys that the recipe makes from numbers, so that a run can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from russet.converters.recipes.export import Exported, write_model
from russet.converters.recipes.forward import FullSequence, Rows, decoder_of, hidden_rows
from russet.converters.recipes.losses import head_loss, hidden_loss
from russet.converters.recipes.measure import means
from russet.converters.recipes.source import Params, Source
from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder, Probe
from russet.models.families import read_decoder


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [batch, length], and the ids that follow each of them."""

    tokens: mx.array
    labels: mx.array


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of the default loss: KL from the source's logits, cross-entropy with the text, hidden states."""

    kl: float = 1.0
    ce: float = 0.0
    hidden: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        return bool(self.kl or self.hidden)


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the source model computes for the batch: rows after its last norm, its head, each layer's output."""

    rows: Rows
    head: mx.array


@dataclass(frozen=True, slots=True)
class Treatment:
    """How the optimizer treats a parameter: a factor on the learning rate, and whether its weights decay."""

    rate: float = 1.0
    decays: bool = True


Loss = tuple[mx.array, dict[str, mx.array]]
"""The scalar that is minimised, and scalars for the curve."""


@dataclass(frozen=True, slots=True)
class Options:
    """A recipe's own settings; a subclass adds fields with defaults: numbers, booleans, strings.

    Raises InvalidOptionError for a number that is not finite, and for a part of the run outside of 0 to below 1.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    """The settings that are a part of the run, counted from its beginning."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidOptionError(f"{field.name} is {value}; a finite number is expected.")
            if field.name in self.parts and not 0 <= value < 1:
                raise InvalidOptionError(f"{field.name} is {value}; it is a part of the run, at least 0 and below 1.")


class Recipe:
    """A recipe with the defaults; a subclass names itself and overrides what it does otherwise."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `russet recipe --help`."""
    options_type: ClassVar[type[Options]] = Options
    objective: ClassVar[Objective] = Objective()
    calibration_tokens: ClassVar[int] = 0
    makes_model: ClassVar[bool] = True
    """Whether what is written is a model folder."""

    def __init__(self, options: Options | None = None, objective: Objective | None = None) -> None:
        self.options = options or self.options_type()
        self.weights_of_loss = objective or self.objective
        self.source: Source
        self.teacher: Source
        self.raw: dict[str, Any] = {}
        self.config: DecoderConfig
        self.dtype = mx.float32

    def open(self, source: Source, dtype: mx.Dtype, teacher: Source | None = None) -> None:
        """Take the source, the number format that the step computes in, and the teacher where it is another model.

        Raises UnsupportedModelError, and InvalidOptionError for a teacher with another vocabulary or a loss of nothing.
        """
        self.source, self.dtype, self.teacher = source, dtype, teacher or source
        if self.teacher.config.vocab_size != source.config.vocab_size:
            raise InvalidOptionError(
                f"The teacher has {self.teacher.config.vocab_size} tokens and the source {source.config.vocab_size}; a "
                "teacher with the source's tokenizer is expected."
            )
        if not self.learns:
            raise InvalidOptionError("Every weight of the loss is 0, so there is nothing to learn: give --kl or --ce.")
        self.raw = self.configure(dict(source.raw))
        self.config = read_decoder(self.raw)

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The result's config.json. Raises InvalidOptionError or UnsupportedModelError."""
        return raw

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads what the teacher computes."""
        return self.weights_of_loss.needs_teacher

    @property
    def learns(self) -> bool:
        """Whether any part of the objective has a weight."""
        wanted = self.weights_of_loss
        return bool(wanted.kl or wanted.ce or wanted.hidden)

    def calibrate(self, batches: Sequence[Batch]) -> None:
        """Look at some text before `start`, `calibration_tokens` of it."""

    def start(self) -> Params:
        """The trained arrays, float32: here all tensors of the source that the result has."""
        roles = self.source.family.names(self.config)
        return {name: array for name, array in self.source.weights.items() if name.removesuffix(".bias") in roles}

    def treatment(self, name: str) -> Treatment:
        """How the optimizer treats a parameter; norms and biases do not decay."""
        return Treatment(decays=not name.endswith(("norm", ".bias")))

    def weights(self, params: Params, at: mx.array) -> Params:
        """The arrays that the decoder computes with, by role: here the parameters themselves.

        `at` is how far the training is, a scalar from 0 to 1.
        """
        return params

    def decoder(self, params: Params, at: mx.array) -> Decoder:
        """The decoder of the result over traced parameters."""
        return decoder_of(self.config, self.weights(params, at), self.dtype)

    def loss(self, params: Params, batch: Batch, teacher: Teacher | None, at: mx.array) -> Loss:
        """What is minimised: the objective's weighted sum, plus `penalty`."""
        decoder, probe, wanted = self.decoder(params, at), self.probe(), self.weights_of_loss
        rows = hidden_rows(
            decoder, batch.tokens, keep=bool(wanted.hidden), probe=probe, cache=self.sequence(decoder, at)
        )
        total, terms = head_loss(rows, decoder, batch.labels, teacher, wanted.kl, wanted.ce)
        if wanted.hidden and teacher is not None:
            terms["hidden"] = hidden_loss(rows.layers, teacher.rows.layers)
            total = total + wanted.hidden * terms["hidden"]
        penalty, more = self.penalty(probe, at)
        return total + penalty, terms | more

    def sequence(self, decoder: Decoder, at: mx.array) -> FullSequence:
        """What the layers keep their keys and values in during a forward pass."""
        return FullSequence(decoder.config)

    def probe(self) -> Probe | None:
        """What watches the layers of a forward pass, for `penalty`."""
        return None

    def penalty(self, probe: Probe | None, at: mx.array) -> Loss:
        """What is added to the objective, from what the probe saw."""
        return mx.array(0.0), {}

    def export(self, params: Params) -> Exported:
        """What is written: here every tensor in the source's number format."""
        names = self.source.family.names(self.config)
        final = self.weights(params, mx.array(1.0))
        return Exported(self.raw, stock_tensors(names, final, self.source.dtype))

    def write(self, folder: Path, params: Params) -> None:
        """Fill the empty folder `folder`. Raises WeightsError and StorageError."""
        write_model(folder, self.export(params), self.source.folder)

    def baseline(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The source's own cross-entropy and perplexity on held-out text."""
        decoder = decoder_of(self.source.config, self.source.weights, self.dtype)

        def terms(batch: Batch) -> dict[str, mx.array]:
            return head_loss(hidden_rows(decoder, batch.tokens), decoder, batch.labels, None)[1]

        return means(terms, batches)

    def report(self, params: Params, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
        """What the recipe measures of its result on held-out text, as JSON."""
        return {}


def stock_tensors(names: Mapping[str, str], arrays: Params, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Role -> stock tensor name, for arrays that are stored dense."""
    tensors = {}
    for name, array in arrays.items():
        role = name.removesuffix(".bias")
        part = "bias" if name.endswith(".bias") else "weight"
        tensors[f"{names[role]}.{part}"] = array.astype(dtype)
    return tensors
