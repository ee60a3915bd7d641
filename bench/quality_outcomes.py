"""What a model makes of items: known tokens put together in passes where prefill is exact, else taken one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from russet.bench.prefill_contenders import Contender
from russet.bench.prefill_run import fits
from russet.bench.quality_metrics import Values
from russet.bench.quality_score import Said, behind, exactly
from russet.bench.quality_tokens import Span, continued, halved, windows
from russet.bench.tasks.items import Continuations, Drawn, Item, RunningText, Scored
from russet.engine.prefill.base import PromptTokens, positions_of

if TYPE_CHECKING:
    from russet.engine.api import Model


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row's values, the reply where one was drawn, and why another prefill ran than was asked for, if so."""

    values: Values
    reply: str | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"values": self.values, "reply": self.reply, "note": self.note}


def outcomes(model: Model, contender: Contender, items: Sequence[Item], pass_rows: int) -> Iterator[Outcome | None]:
    """One for each item, in order; None where it does not fit in the model's context."""
    together = {}
    if contender.prefill.exact:
        known = {i: item for i, item in enumerate(items) if not isinstance(item, Drawn)}
        together = dict(zip(known, _exact(model, list(known.values()), pass_rows), strict=True))
    for i, item in enumerate(items):
        if isinstance(item, Drawn):
            yield _drawn(model, contender, item)
        elif contender.prefill.exact:
            yield together[i]
        elif isinstance(item, Continuations):
            yield _choices_behind(model, contender, item)
        else:
            yield _text_behind(model, contender, item)


def _exact(model: Model, items: Sequence[Continuations | RunningText], pass_rows: int) -> Iterator[Outcome | None]:
    spans = [_spans(model, item) for item in items]
    fitting = [_fits(model, found) for found in spans]
    wanted = [span for found, fit in zip(spans, fitting, strict=True) if fit for span in found]
    said = iter(exactly(model, wanted, pass_rows))
    for item, found, fit in zip(items, spans, fitting, strict=True):
        yield _outcome(item, found, [next(said) for _ in found]) if fit else None


def _spans(model: Model, item: Continuations | RunningText) -> list[Span]:
    if isinstance(item, Continuations):
        return [continued(model.tokenizer, item.context, text) for text in item.continuations]
    return list(windows(model.tokenizer, item.text, min(item.window, model.max_positions)))


def _fits(model: Model, spans: Sequence[Span]) -> bool:
    return all(len(span.tokens) - 1 <= model.max_positions for span in spans)


def _outcome(item: Continuations | RunningText, spans: Sequence[Span], said: Sequence[Said]) -> Outcome:
    if isinstance(item, Continuations):
        return Outcome(item.values(_scored(said)))
    total = sum(float(each.logs.sum()) for each in said)
    later = [each.logs[halved(span).first - span.first :] for span, each in zip(spans, said, strict=True)]
    return Outcome({**item.values, "log_probability": total, **_continuation(later)})


def _scored(said: Sequence[Said]) -> list[Scored]:
    return [Scored(float(each.logs.sum()), bool(each.greedy.all())) for each in said]


def _continuation(logs: Sequence[np.ndarray]) -> Values:
    return {
        "continuation_log_probability": sum(float(part.sum()) for part in logs),
        "continuation_tokens": float(sum(map(len, logs))),
    }


def _choices_behind(model: Model, contender: Contender, item: Continuations) -> Outcome | None:
    spans = _spans(model, item)
    if not all(_fits_behind(model, contender, span) for span in spans):
        return None
    found, note = [], ""
    # As a rule one group: a context is seldom tokenised otherwise for what follows it.
    for context, group in groupby(spans, key=lambda span: span.context):
        said, prefilled = behind(model, contender.prefill, context, [span.continuation for span in group])
        found += said
        note = note or prefilled.note
    return Outcome(item.values(_scored(found)), note=note)


def _text_behind(model: Model, contender: Contender, item: RunningText) -> Outcome | None:
    logs, note = [], ""
    for span in map(halved, _spans(model, item)):
        if not _fits_behind(model, contender, span):
            return None
        (said,), prefilled = behind(model, contender.prefill, span.context, [span.continuation])
        logs.append(said.logs)
        note = note or prefilled.note
    return Outcome(_continuation(logs), note=note)


def _fits_behind(model: Model, contender: Contender, span: Span) -> bool:
    positions = positions_of(contender.prefill, PromptTokens(span.context))
    return positions + len(span.continuation) - 1 <= model.max_positions


def _drawn(model: Model, contender: Contender, item: Drawn) -> Outcome | None:
    raw = isinstance(item.prompt, str)
    if not fits(model, contender.prefill, model.prepare(item.prompt, raw=raw), item.limit):
        return None
    if contender.primed:
        model.generate(item.prompt, raw=raw, prefill=contender.prefill, max_tokens=1)
    reply = model.generate(item.prompt, raw=raw, prefill=contender.prefill, max_tokens=item.limit, stop=item.stop)
    return Outcome(item.values(reply.text), reply.text, reply.note)
