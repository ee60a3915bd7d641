"""Log probabilities of tokens that are known: many sequences a pass exactly, or behind what a prefill strategy left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from russet.bench.quality_tokens import Span
from russet.engine.encoding import check_ids
from russet.engine.errors import WeightsError
from russet.engine.likelihood import log_probabilities
from russet.engine.prefill.base import Prefill, Prefilled, PromptTokens, positions_of
from russet.engine.prefill.exact import Exact
from russet.models.decoder import Decoder
from russet.models.runtimes.base import PackageDecoder

if TYPE_CHECKING:
    from russet.engine.api import Model

HEAD_ROWS = 256
"""Rows whose logits are held at once: one takes 4 bytes for each word of the vocabulary."""


class Said(NamedTuple):
    """Of each scored token: its log probability in nats, float64 [n], and whether it is the likeliest one [n]."""

    logs: np.ndarray
    greedy: np.ndarray


def exactly(model: Model, spans: Sequence[Span], pass_rows: int) -> list[Said]:
    """Score sequences as one pass over each would, several a pass of at most `pass_rows` rows.

    Sequences of similar length go together, filled up at their ends, where nothing that counts sees it. So the number
    of rows in a pass changes results by rounding alone. A package, which gives the last token's logits alone, goes
    token by token.
    """
    for span in spans:
        check_ids(span.tokens, model.vocab_size)
    if isinstance(model.decoder, PackageDecoder):
        return [behind(model, Exact(), span.context, [span.continuation])[0][0] for span in spans]
    found: dict[int, Said] = {}
    for group in _packed(spans, pass_rows):
        for index, said in zip(group, _one_pass(model, [spans[i] for i in group]), strict=True):
            found[index] = said
    return [found[i] for i in range(len(spans))]


def _packed(spans: Sequence[Span], pass_rows: int) -> Iterator[list[int]]:
    """Indices of the sequences, longest first, in groups whose rows are at most `pass_rows` when filled up."""
    order = sorted(range(len(spans)), key=lambda i: (-len(spans[i].tokens), i))
    while order:
        room = max(1, pass_rows // (len(spans[order[0]].tokens) - 1))
        group, order = order[:room], order[room:]
        yield group


def _one_pass(model: Model, group: Sequence[Span]) -> Iterator[Said]:
    rows = max(len(span.tokens) for span in group) - 1
    keep = rows + 1 - min(span.first for span in group)
    filled = np.zeros((len(group), rows), dtype=np.int32)
    where, targets = [], []
    for i, span in enumerate(group):
        filled[i, : len(span.tokens) - 1] = span.tokens[:-1]
        first = i * keep + span.first - 1 - (rows - keep)
        where.append(np.arange(first, first + len(span.continuation), dtype=np.int32))
        targets += span.continuation
    logs, greedy = _score(model, mx.array(filled), keep, np.concatenate(where), np.array(targets, dtype=np.int32))
    cuts = np.cumsum([len(part) for part in where])[:-1]
    for part, likeliest in zip(np.split(logs, cuts), np.split(greedy, cuts), strict=True):
        yield Said(part, likeliest)


def _score(model: Model, filled: mx.array, keep: int, where: np.ndarray, targets: np.ndarray) -> Said:
    """Rows `where` of the last `keep` ones of each sequence, all counted through, against `targets`."""
    decoder = model.decoder
    batch, rows = filled.shape
    if not isinstance(decoder, Decoder):
        logits = decoder.extend(filled, decoder.new_cache(model.kv_bits), logits=keep)
        assert logits is not None
        return _in_parts(lambda some: logits.reshape(batch * keep, -1)[some], where, targets)
    cache = decoder.new_cache(model.kv_bits, batch)
    writer, count = decoder.config.last_writer, len(decoder.blocks)
    h = decoder.run(decoder.embed(filled), range(writer + 1), 0, cache, last=keep)
    if writer + 1 < count:
        h = decoder.run(h, range(writer + 1, count), rows - keep, cache)
    h = h.reshape(batch * keep, -1)
    mx.eval(h)
    return _in_parts(lambda some: decoder.head(h[some][None])[0], where, targets)


def _in_parts(logits_of: Callable[[mx.array], mx.array], where: np.ndarray, targets: np.ndarray) -> Said:
    """Score rows a part at a time; `logits_of` takes indices [n] to logits [n, vocab]."""
    logs, greedy = [], []
    for start in range(0, len(where), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        said = said_of(logits_of(mx.array(where[part])), mx.array(targets[part]))
        logs.append(said.logs)
        greedy.append(said.greedy)
    return Said(np.concatenate(logs), np.concatenate(greedy))


def said_of(logits: mx.array, targets: mx.array) -> Said:
    """What logits [n, vocab] say of `targets` [n]; WeightsError where they are not finite."""
    logs, likeliest = log_probabilities(logits, targets), mx.argmax(logits, axis=-1) == targets
    mx.eval(logs, likeliest)
    found = np.array(logs, dtype=np.float64)
    if not np.isfinite(found).all():
        raise WeightsError(
            "The model gives log probabilities that are not finite; compute in float32 (--dtype), or convert it anew."
        )
    return Said(found, np.array(likeliest))


def behind(
    model: Model, prefill: Prefill, context: Sequence[int], continuations: Sequence[Sequence[int]]
) -> tuple[list[Said], Prefilled]:
    """Put a context through a strategy and score each continuation on the rows that it left, one pass each.

    The first token of each is scored by the strategy's own logits. Between continuations the cache is cut back to the
    context; where that is not possible, the context is prefilled anew.
    """
    for part in (context, *continuations):
        check_ids(part, model.vocab_size)
    found: list[Said] = []
    prompt = PromptTokens(context)
    cache, prefilled, end = None, None, 0
    for continuation in continuations:
        if cache is None or prefilled is None or prefilled.extend is not None or not cache.trim(end):
            cache = model.decoder.new_cache(model.kv_bits)
            cache.reserve(positions_of(prefill, prompt) + max(map(len, continuations)))
            prefilled = prefill(model.decoder, prompt, cache)
            end = cache.next_position
        found.append(said_of(_follow(model, prefilled, cache, continuation), mx.array(list(continuation))))
    assert prefilled is not None
    return found, prefilled


def _follow(model: Model, prefilled: Prefilled, cache: Any, continuation: Sequence[int]) -> mx.array:
    """Logits [n, vocab] of a continuation's tokens; all but the last one are appended to the cache."""
    parts, rest = [prefilled.logits], list(continuation[:-1])
    if prefilled.extend is not None or isinstance(model.decoder, PackageDecoder):
        step = model.step(cache, prefilled.extend)
        parts += [step(mx.array([[token]])) for token in rest]
    elif rest:
        logits = model.decoder.extend(mx.array([rest]), cache, logits=len(rest))
        assert logits is not None
        parts.append(logits[0])
    return mx.concatenate(parts, axis=0)
