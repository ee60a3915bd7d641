"""SpecPrefill (arXiv 2502.02789): a draft model chooses the chunks of the prompt that the base model computes.

The draft runs the whole prompt and a few tokens more. What those tokens attend to is kept, at its original positions;
the rest of the prompt never reaches the base model, so decoding afterwards is ordinary decoding over fewer rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache
from russet.engine.device import prefill_chunk
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.base import Prefilled, PromptTokens, Work
from russet.engine.prefill.exact import Exact, exact_instead
from russet.engine.prefill.importance import Watch, attention
from russet.engine.prefill.pruning import FIRST, LAST
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned
from russet.models.rope import contiguous

MIN_PROMPT = 128
"""Tokens under which the draft costs more than it saves."""

DRAFT_SHARE = 0.5
"""The share of the base's layers that draft for it where no draft model is given."""


class SpecPrefill:
    """Compute only the chunks of the prompt that a draft attends to.

    `keep` is the share of chunks that the base model computes; the first tokens, the last ones and the template's tail
    come on top. `draft` is a decoder with the base's vocabulary, or which of the base's own layers to draft with: a
    share of them, or a list. The paper's values: `lookahead` tokens that the draft goes on for, `pool` neighbours that
    a score is averaged over, `chunk` tokens that are kept or dropped together. Prompts under `min_prompt` tokens are
    computed exactly. Raises `InvalidOptionError` for values out of range.
    """

    name = "specprefill"
    exact = False

    def __init__(
        self,
        keep: float = 0.3,
        draft: Decoder | Sequence[int] | float | None = None,
        *,
        lookahead: int = 8,
        pool: int = 13,
        chunk: int = 32,
        min_prompt: int = MIN_PROMPT,
        rows: int | None = None,
    ) -> None:
        if not 0 < keep <= 1:
            raise InvalidOptionError(f"keep is {keep}; it must be above 0 and at most 1.")
        if min(lookahead, pool, chunk) < 1:
            raise InvalidOptionError(
                f"lookahead, pool and chunk are {lookahead}, {pool} and {chunk}; each must be at least 1."
            )
        if isinstance(draft, str) or not isinstance(draft, Decoder | Sequence | Real | None):
            raise InvalidOptionError(
                f"draft is of type {type(draft).__name__}; give a decoder, as in russet.load(name).decoder, a share of "
                "the model's own layers, or a list of them."
            )
        self.keep = keep
        self.draft = DRAFT_SHARE if draft is None else draft
        self.lookahead = lookahead
        self.pool = pool
        self.chunk = chunk
        self.min_prompt = min_prompt
        self.rows = rows or prefill_chunk()
        self._view: tuple[Decoder, Decoder] | None = None

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        reason = self._unfit(decoder, prompt)
        if reason:
            return exact_instead(decoder, prompt, cache, reason, self.rows)
        count = len(prompt.tokens)
        kept = np.arange(count)
        if self.keep < 1:
            scores = importance(self._draft(decoder), prompt.tokens, self.lookahead, self.pool, self.rows)
            kept = choose(scores, self.keep, self.chunk, max(prompt.tail, LAST))
        logits = compute_rows(decoder, prompt.tokens, kept, cache, self.rows)
        writer, layers = decoder.config.last_writer, len(decoder.config.layers)
        work = Work([len(kept) if i < writer else 1 for i in range(layers)])
        return Prefilled(logits, exact=len(kept) == count, strategy=self.name, work=work)

    def _draft(self, decoder: Decoder) -> Decoder:
        """The draft model, or the base's own layers, which are put together once."""
        if isinstance(self.draft, Decoder):
            return self.draft
        if self._view is None or self._view[0] is not decoder:
            self._view = decoder, layer_pruned(decoder, self.draft)
        return self._view[1]

    def _unfit(self, decoder: Any, prompt: PromptTokens) -> str:
        """Why exact prefill has to serve, as a sentence, or nothing."""
        if not isinstance(decoder, Decoder):
            return "SpecPrefill needs one of Russet's own architectures, so the prompt was computed exactly."
        if len(prompt.tokens) < self.min_prompt:
            return f"SpecPrefill is for prompts of {self.min_prompt} tokens and more, so this one was computed exactly."
        if not isinstance(self.draft, Decoder):
            return ""
        draft, base = self.draft.config, decoder.config
        if draft.vocab_size != base.vocab_size:
            return (
                f"The draft has a vocabulary of {draft.vocab_size} tokens and the model one of {base.vocab_size}, so "
                "the prompt was computed exactly."
            )
        if len(prompt.tokens) > draft.max_positions:
            return (
                f"The draft's context holds {draft.max_positions} tokens and the prompt has {len(prompt.tokens)}, so "
                "it was computed exactly."
            )
        return ""


def importance(draft: Decoder, tokens: Sequence[int], lookahead: int, pool: int, rows: int) -> np.ndarray:
    """How much the draft's next `lookahead` tokens attend to each prompt token: [len(tokens)], float32.

    Softmax is over prompt tokens only; then the average over `pool` neighbours, the maximum over layers and heads, and
    the mean over look-ahead tokens. The draft's cache, computed `rows` rows at a time, is gone afterwards.
    """
    cache = draft.new_cache()
    voters = _voters(draft)
    watch = Watch(voters, lookahead)
    _look_ahead(draft, tokens, lookahead, rows, cache, watch)
    best: mx.array | None = None
    for layer in voters:
        weights = _prompt_weights(draft, layer, watch.seen[layer], len(tokens), cache)
        highest = moving_average(weights, pool).max(axis=0)
        best = highest if best is None else mx.maximum(best, highest)
        # One layer's weights at a time are in memory.
        mx.eval(best)
    assert best is not None
    return np.array(best.mean(axis=0))


def _voters(draft: Decoder) -> list[int]:
    """The layers that see the whole prompt; those with a window vote only where no layer does."""
    specs = draft.config.layers
    whole = [i for i, spec in enumerate(specs) if spec.window is None]
    return whole or list(range(len(specs)))


def _look_ahead(draft: Decoder, tokens: Sequence[int], lookahead: int, rows: int, cache: KVCache, watch: Watch) -> None:
    """Run the prompt, then `lookahead` greedy tokens under `watch`."""
    logits = Exact(rows)(draft, PromptTokens(tokens), cache).logits
    for _ in range(lookahead):
        token = mx.argmax(logits, axis=-1)[:, None]
        layers = range(len(draft.blocks))
        h = draft.run(draft.embed(token), layers, cache.next_position, cache, probe=watch)
        cache.next_position += 1
        logits = draft.head(h)[:, -1]
    mx.eval(list(watch.seen.values()))


def _prompt_weights(draft: Decoder, layer: int, queries: mx.array, count: int, cache: KVCache) -> mx.array:
    """Attention weights [heads, lookahead, count] over the prompt alone; tokens that the layer has dropped get 0."""
    slot = cache.slot(layer)
    window = draft.config.layers[layer].window
    weights = attention(queries, slot, draft.blocks[layer].scale, cache.next_position, window)
    before = slot.first
    weights = weights[..., : count - before]
    weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
    return mx.pad(weights, [(0, 0), (0, 0), (before, 0)]) if before else weights


def moving_average(x: mx.array, width: int) -> mx.array:
    """Averages over `width` neighbours along the last axis; what lies past the ends counts as 0."""
    count, total, offset = x.shape[-1], mx.zeros_like(x), 0
    lead = [(0, 0)] * (x.ndim - 1)
    # Sums of 1, 2, 4, ... neighbours: as exact as adding one by one, in fewer passes.
    sums, span = mx.pad(x, [*lead, (width // 2, (width - 1) // 2)]), 1
    while span <= width:
        if width & span:
            total = total + sums[..., offset : offset + count]
            offset += span
        sums, span = sums[..., :-span] + sums[..., span:], 2 * span
    return total / width


def choose(scores: np.ndarray, keep: float, chunk: int, last: int) -> np.ndarray:
    """The indices, rising, of the tokens in the best `ceil(keep * chunks)` chunks by mean score.

    The first four tokens (attention sinks, arXiv 2309.17453) and the last `last` are always among them. They attract
    attention whatever is asked, so they do not count in a chunk's mean, and chunks of nothing else take no place.
    """
    count = len(scores)
    kept = np.zeros(count, dtype=bool)
    kept[:FIRST] = kept[max(0, count - last) :] = True
    starts = np.arange(0, count, chunk)
    ranked = np.add.reduceat((~kept).astype(np.int64), starts)
    totals = np.add.reduceat(np.where(kept, 0.0, scores), starts)
    means = np.where(ranked > 0, totals / np.maximum(ranked, 1), -np.inf)
    best = np.argsort(-means, kind="stable")[: math.ceil(keep * len(starts))]
    return np.flatnonzero(kept | np.isin(np.arange(count) // chunk, best))


def compute_rows(decoder: Decoder, tokens: Sequence[int], kept: np.ndarray, cache: KVCache, rows: int) -> mx.array:
    """Append the tokens with the indices `kept`, rising, at their own positions; logits [1, vocab] of the last one.

    The cache goes on after the whole prompt. As in exact prefill, layers after the last one that writes keys and values
    see one row only.
    """
    start = cache.next_position
    writer, layers = decoder.config.last_writer, len(decoder.blocks)
    picked = np.asarray(tokens)[kept]
    last_start = (len(kept) - 1) // rows * rows
    h = None
    for begin in range(0, len(kept), rows):
        positions = contiguous(start + kept[begin : begin + rows].astype(np.float64))
        embedded = decoder.embed(mx.array(picked[begin : begin + rows])[None])
        is_last = begin == last_start
        h = decoder.run(embedded, range(writer + 1), positions, cache, last=1 if is_last else 0)
        if not is_last:
            mx.eval(cache.arrays())
    assert h is not None
    if writer + 1 < layers:
        h = decoder.run(h, range(writer + 1, layers), start + int(kept[-1]), cache)
    cache.next_position = start + len(tokens)
    return decoder.head(h)[:, -1]
