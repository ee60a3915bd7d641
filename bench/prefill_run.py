"""One prompt through one strategy: timed by the function that times every contender, its output kept as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from russet.bench.ours import timed
from russet.bench.shapes import ShapeModel
from russet.engine.prefill.base import Prefill, PromptTokens, positions_of

if TYPE_CHECKING:
    from russet.engine.api import Model


@dataclass(frozen=True, slots=True)
class RowRun:
    """What one strategy did with one row.

    `text` is empty and `score` None where weights are random. `prefill_s` runs from the prompt's token ids to the
    first token; it is None where only scores were wanted. `decode_tps` is 0 for a single token, or untimed.
    `layer_tokens`, empty where unknown, counts prompt tokens a layer, and `revived` those that decoding computed. `ran`
    is the strategy that ran, and `note` says why where it is not the one asked for.
    """

    text: str
    score: float | None
    prefill_s: float | None
    decode_tps: float
    layer_tokens: list[int]
    revived: int
    ran: str
    exact: bool
    note: str
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fits(model: Model, prefill: Prefill, prompt: PromptTokens, generate: int) -> bool:
    """Whether prompt and reply have room in the model's context."""
    return positions_of(prefill, prompt) + generate <= model.max_positions


def run(model: Model | ShapeModel, prefill: Prefill, prompt: PromptTokens, generate: int) -> RowRun:
    """Draw exactly `generate` greedy tokens, also past the end of the reply, whose text alone is kept; no score yet.

    So every strategy's decoding rate stands on the same number of tokens.
    """
    measured, prefilled = timed(model, prefill, prompt, generate, weights_bytes=0)
    return RowRun(
        text=_reply(model, measured.tokens),
        score=None,
        prefill_s=measured.timings.prefill_s,
        decode_tps=measured.timings.decode_tps,
        layer_tokens=list(prefilled.work.layer_tokens),
        revived=prefilled.work.revived,
        ran=prefilled.strategy,
        exact=prefilled.exact,
        note=prefilled.note,
        peak_memory_bytes=measured.peak_memory_bytes,
    )


def _reply(model: Model | ShapeModel, tokens: list[int]) -> str:
    """The text before the first token that ends a reply."""
    if isinstance(model, ShapeModel):
        return ""
    ends = model.tokenizer.eos_ids
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return model.tokenizer.decode(tokens[:end])
