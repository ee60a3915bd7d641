"""KV Prediction for an auxiliary that begins as its base does: common layers run once, and important rows are real.

What the common layers compute is what exact prefill computes. Behind them the base goes on with the tokens that the end
of the prompt attends to, as in LazyLLM (arXiv 2407.14057), and the rest get predicted rows, where LazyLLM has none.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache
from russet.engine.prefill.base import PromptTokens, Work
from russet.engine.prefill.identity import Identity
from russet.engine.prefill.importance import Scorer, Watch, score
from russet.engine.prefill.predictor import Predictor, Seen
from russet.engine.prefill.pruning import select
from russet.models.decoder import Decoder, Probe
from russet.models.rope import contiguous

SINK = 1
"""Tokens at the start that the base computes: the first takes the attention that finds nothing else, and linear maps
that serve all other tokens serve it badly."""

TAIL = 8
"""Tokens at the end of a prompt that the base computes, where it computes more than the last one."""

FEWEST = 16
"""Tokens that the base computes at least, there: a tenth of a text of 80 tokens would be its end alone."""


class SeenRows(Probe):
    """Keeps what each layer computed of the last rows."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}

    def normed(self, layer: int, rows: mx.array) -> None:
        self._rows = rows

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.seen[layer] = Seen(keys, values, self._rows)


def common_layers(predictor: Predictor) -> int | None:
    """How many first layers all tokens run through in base and auxiliary alike; None for an auxiliary of its own.

    The last layer that maps read is never one: its attention and FFN are not needed.
    """
    kept = predictor.auxiliary
    if isinstance(kept, Identity):
        return None
    same = next((j for j, layer in enumerate(kept) if layer != j or j not in predictor.unmapped), len(kept))
    return min(same, _last_source(predictor))


def fill(
    base: Decoder,
    auxiliary: Decoder,
    predictor: Predictor,
    prompt: PromptTokens,
    cache: KVCache,
    keep: float,
    scorer: Scorer,
    chunk: int,
) -> tuple[mx.array, Work]:
    """Rows of a whole prompt into an empty cache, and logits [1, vocab] of its last token.

    The base computes a share `keep` of the tokens in all layers; with 0, or without common layers to rank tokens by,
    the last token alone. `chunk` bounds the rows of one pass.
    """
    common, count = common_layers(predictor), len(prompt.tokens)
    assert common is not None
    ranking = keep > 0 and common > 0
    watch = Watch(scorer.layers(common, base.config) if ranking else (), scorer.queries)
    h = _through_common(base, prompt, common, cache, watch, chunk)
    everything = np.arange(count, dtype=np.float64)
    chosen = np.array([count - 1])
    if ranking:
        tail = min(count, max(TAIL, prompt.tail))
        scores = score(scorer, common, watch, count, everything, base, cache)
        chosen = np.array(select(scores, min(count, max(tail, FEWEST, round(keep * count))), SINK, tail))
    rest = np.setdiff1d(np.arange(count), chosen, assume_unique=True)
    # Behind the last of these the auxiliary need not run.
    through = h[:, : rest[-1] + 1 if len(rest) else 0]
    _store_predicted(auxiliary, base, predictor, through, rest, cache, common, chunk)
    logits = _finish(base, _rows(h, chosen), everything[chosen], common, cache)
    cache.next_position = count
    return logits, _work(base, predictor, common, count, len(chosen), through.shape[1])


def _through_common(
    base: Decoder, prompt: PromptTokens, common: int, cache: KVCache, watch: Watch, chunk: int
) -> mx.array:
    """Rows [1, n, hidden] behind the common layers."""
    if not common:
        return base.embed(mx.array(list(prompt.tokens))[None])
    tokens, through = mx.array(list(prompt.tokens))[None], []
    for start in range(0, tokens.shape[1], chunk):
        rows = base.embed(tokens[:, start : start + chunk])
        through.append(base.run(rows, range(common), start, cache, probe=watch))
        mx.eval(through[-1], cache.arrays(), list(watch.seen.values()))
    return through[0] if len(through) == 1 else mx.concatenate(through, axis=1)


def _store_predicted(
    auxiliary: Decoder,
    base: Decoder,
    predictor: Predictor,
    h: mx.array,
    rest: np.ndarray,
    cache: KVCache,
    common: int,
    chunk: int,
) -> None:
    """Run all rows on through the auxiliary, and store those of the tokens `rest` in the base's other layers."""
    layers, rows, probe = range(common, _last_source(predictor) + 1), auxiliary.new_cache(), SeenRows()
    for start in range(0, h.shape[1], chunk):
        auxiliary.run(h[:, start : start + chunk], layers, start, rows, last=0, probe=probe)
        some = rest[(rest >= start) & (rest < start + chunk)]
        if not len(some):
            continue
        at, positions = mx.array((some - start).astype(np.int32)), contiguous(some.astype(np.float64))
        seen = {j: Seen(s.keys[:, :, at], s.values[:, :, at], s.normed[:, at]) for j, s in probe.seen.items()}
        for layer, keys, values in predictor.predict_all(seen):
            base.store(layer, keys, values, positions, cache)
        mx.eval(cache.arrays(), rows.arrays())


def _finish(base: Decoder, h: mx.array, positions: np.ndarray, common: int, cache: KVCache) -> mx.array:
    """Logits [1, vocab] of the last of some rows, after storing their keys and values in all layers left."""
    writer, count = base.config.last_writer, len(base.blocks)
    h = base.run(h, range(common, writer + 1), contiguous(positions), cache, last=1)
    if writer + 1 < count:
        h = base.run(h, range(writer + 1, count), int(positions[-1]), cache)
    return base.head(h)[:, -1]


def _work(base: Decoder, predictor: Predictor, common: int, count: int, chosen: int, ran: int) -> Work:
    """All tokens in the common layers, the chosen ones in the rest, and the `ran` that the auxiliary took further."""
    writer = base.config.last_writer
    tokens = [count] * common + [chosen] * (writer - common) + [1] * (len(base.blocks) - writer)
    if not isinstance(predictor.auxiliary, Identity):
        for layer in predictor.auxiliary[common : _last_source(predictor)]:
            tokens[layer] += ran
    return Work(tokens)


def _last_source(predictor: Predictor) -> int:
    return max(source for source in predictor.layer_map if source is not None)


def _rows(h: mx.array, chosen: np.ndarray) -> mx.array:
    return h[:, mx.array(chosen.astype(np.int32))]
