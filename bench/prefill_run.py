"""One prompt through one strategy: timed by the function that times every contender, its output kept as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from russet.bench.base import measure
from russet.engine.decode import decode
from russet.engine.generation import RESERVED_TOKENS
from russet.engine.options import GenerationOptions
from russet.engine.prefill.base import Prefill, Prefilled, PromptTokens, positions_of
from russet.engine.sampling import make_sampler

if TYPE_CHECKING:
    from russet.engine.api import Model


@dataclass(frozen=True, slots=True)
class RowRun:
    """What one strategy did with one row.

    `prefill_s` runs from the prompt's token ids to the first token. `decode_tps` is 0 for a single token.
    `layer_tokens`, empty where unknown, counts prompt tokens a layer, and `revived` those that decoding computed.
    `ran` is the strategy that ran, and `note` says why where it is not the one asked for.
    """

    text: str
    score: float
    prefill_s: float
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


def run(model: Model, prefill: Prefill, prompt: PromptTokens, generate: int) -> RowRun:
    """Draw exactly `generate` greedy tokens, also past the end of the reply, whose text alone is kept; score 0 yet.

    So every strategy's decoding rate stands on the same number of tokens.
    """
    found: list[Prefilled] = []

    def start() -> Iterator[int]:
        cache = model.decoder.new_cache(model.kv_bits)
        cache.reserve(positions_of(prefill, prompt) + min(generate, RESERVED_TOKENS))
        sample = make_sampler(GenerationOptions(), prompt.tokens, model.vocab_size)
        prefilled = prefill(model.decoder, prompt, cache)
        found.append(prefilled)
        return decode(model.step(cache, prefilled.extend), prefilled.logits, sample, generate)

    measured = measure(prompt.tokens, start, weights_bytes=0)
    (prefilled,) = found
    return RowRun(
        text=model.tokenizer.decode(_reply(measured.tokens, model.tokenizer.eos_ids)),
        score=0.0,
        prefill_s=measured.timings.prefill_s,
        decode_tps=measured.timings.decode_tps,
        layer_tokens=list(prefilled.work.layer_tokens),
        revived=prefilled.work.revived,
        ran=prefilled.strategy,
        exact=prefilled.exact,
        note=prefilled.note,
        peak_memory_bytes=measured.peak_memory_bytes,
    )


def _reply(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens before the first that ends a reply."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]
