"""One reply: prefill, token loop, text and stop strings put together, and timed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from russet.engine.decode import decode
from russet.engine.detokenizer import StreamDetokenizer
from russet.engine.encoding import check_ids
from russet.engine.errors import EmptyPromptError, PromptTooLongError
from russet.engine.options import GenerationOptions
from russet.engine.prefill.base import Prefill, Prefilled, PromptTokens, positions_of
from russet.engine.reply import FinishReason, Piece, Reply
from russet.engine.sampling import Sampler, make_sampler
from russet.engine.stop import StopMatcher
from russet.engine.timing import Stopwatch

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.prefix_store import HeldPrefix


@dataclass
class Run:
    """A reply in the making; whoever started it can read how far it came, also after stopping it early."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    exact_rows: bool = False
    """Whether prefill went through and left in the cache what one exact pass would leave."""
    reply: Reply | None = None
    """Set when it ended, in whatever way, once prefill was through."""


def check_prompt(tokens: Sequence[int], model: Model, positions: int | None = None, reply: int = 0) -> None:
    """Refuse an empty prompt, ids that are none of the model's, and too little room in the context for a reply.

    `positions` is how many the prompt takes, where that is not one a token; `reply` how many tokens are to follow the
    first one.
    """
    if not tokens:
        raise EmptyPromptError("The prompt is empty; give at least one token to continue from.")
    check_ids(tokens, model.vocab_size)
    max_positions = model.max_positions - reply
    taken = len(tokens) if positions is None else positions
    if taken >= max_positions:
        squeezed = f" and takes {taken} positions" if taken != len(tokens) else ""
        raise PromptTooLongError(
            f"The prompt is {len(tokens)} tokens long{squeezed} and the model's context holds {max_positions}, one of "
            "which the reply needs; shorten the prompt."
        )


def generate(
    model: Model,
    prompt: PromptTokens,
    options: GenerationOptions,
    prefill: Prefill,
    watch: Stopwatch,
    cache: Any,
    run: Run,
) -> Generator[Piece, None, None]:
    """Continue a prompt; the cache holds a prefix of it already, shorter than the whole.

    Pieces come as soon as their text is certain; the last one carries the `Reply`. Closing the generator early leaves
    one in `run`, its finish reason "interrupted". What the model's prefix store keeps of the prompt is written at the
    very end, after the last piece.
    """
    mx.reset_peak_memory()
    sample = make_sampler(options, prompt.tokens, model.vocab_size)
    limit = options.max_tokens or model.max_positions
    begun = _begin(model, prompt, prefill, cache, limit, run)
    try:
        yield from _speak(model, prompt, options, begun, sample, watch, cache, run)
    finally:
        if begun.held is not None:
            begun.held.write()


@dataclass(frozen=True)
class _Begun:
    """A prompt that is through: `cached` of its tokens had their rows already, `limit` tokens may follow."""

    prefilled: Prefilled
    cached: int
    limit: int
    held: HeldPrefix | None


def _begin(model: Model, prompt: PromptTokens, prefill: Prefill, cache: Any, limit: int, run: Run) -> _Begun:
    """Look the prompt up in the prefix store, where the strategy is exact, and prefill the rest of it."""
    taken, store = positions_of(prefill, prompt), model.prefix_store
    room = min(taken + limit, taken + RESERVED_TOKENS, model.max_positions)
    if store is not None and prefill.exact and cache.next_position == 0:
        store.fill(cache, prompt.tokens, room)
    cached = cache.next_position
    cache.reserve(room)
    prefilled = prefill(model.decoder, prompt.after(cached), cache)
    run.exact_rows = prefilled.exact and prefilled.extend is None
    held = store.hold(cache, prompt.tokens) if store is not None and run.exact_rows else None
    return _Begun(prefilled, cached, min(limit, model.max_positions - cache.next_position), held)


def _speak(
    model: Model,
    prompt: PromptTokens,
    options: GenerationOptions,
    begun: _Begun,
    sample: Sampler,
    watch: Stopwatch,
    cache: Any,
    run: Run,
) -> Generator[Piece, None, None]:
    """The token loop and the text that comes of it."""
    finish: FinishReason = "interrupted"
    text = StreamDetokenizer(model.tokenizer)
    stops = StopMatcher(options.stop)
    try:
        step = model.step(cache, begun.prefilled.extend)
        for token in decode(step, begun.prefilled.logits, sample, begun.limit):
            watch.token()
            if token in model.tokenizer.eos_ids:
                finish = "stop"
                break
            run.tokens.append(token)
            piece = stops.feed(text.add(token))
            if piece:
                watch.text()
                run.text += piece
                yield Piece(piece, token)
            if stops.stopped:
                finish = "stop"
                break
        else:
            finish = "length"
        rest = "" if stops.stopped else stops.feed(text.finish()) + stops.finish()
        run.text += rest
    finally:
        run.reply = _reply(model, run, prompt.tokens, finish, begun.prefilled, watch, cache, begun.cached)
    yield Piece(rest, None, run.reply)


RESERVED_TOKENS = 256
"""Cache rows set aside for the reply at the start; longer replies grow the cache in steps."""


def _reply(
    model: Model,
    run: Run,
    prompt: Sequence[int],
    finish: FinishReason,
    prefilled: Prefilled,
    watch: Stopwatch,
    cache: Any,
    cached: int,
) -> Reply:
    return Reply(
        text=run.text,
        tokens=run.tokens,
        prompt_tokens=len(prompt),
        finish_reason=finish,
        exact=prefilled.exact and cache.kv_bits == 16 and not getattr(model.decoder, "cuts_ffns", False),
        strategy=prefilled.strategy,
        note=prefilled.note,
        layer_tokens=tuple(prefilled.work.layer_tokens),
        revived=prefilled.work.revived,
        timings=watch.timings(model.load_s, len(prompt), cached),
        peak_memory_bytes=mx.get_peak_memory(),
    )
