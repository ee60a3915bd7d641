"""How important the tokens of a prompt are to the end of it: scorers that read attention off the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache, Slot
from russet.engine.errors import InvalidOptionError
from russet.kernels.row_importance import last_row_importance
from russet.models.config import DecoderConfig
from russet.models.decoder import Decoder, Probe
from russet.models.rope import OnDevice

Reduction = Literal["mean", "max"]


class Watch(Probe):
    """Keeps the last `rows` queries of some layers, [1, heads, at most rows, head_dim], in `seen`."""

    def __init__(self, layers: Iterable[int], rows: int) -> None:
        self.seen: dict[int, mx.array] = {}
        self._layers = frozenset(layers)
        self._rows = rows

    def queries(self, layer: int, queries: mx.array, cache: KVCache) -> None:
        if layer not in self._layers:
            return
        if layer in self.seen and queries.shape[2] < self._rows:
            queries = mx.concatenate([self.seen[layer], queries], axis=2)
        # A slice would hold on to all rows.
        self.seen[layer] = mx.contiguous(queries[:, :, -self._rows :])


class Scorer(Protocol):
    """Ranks tokens by the attention that the prompt's last queries pay them.

    `queries` is how many it looks at; they are never dropped. `pool` is how many neighbours share their scores: digits
    and names are several tokens, of which the later ones are attended to only once the earlier ones are written.
    """

    @property
    def queries(self) -> int: ...

    @property
    def pool(self) -> int: ...

    def layers(self, boundary: int, config: DecoderConfig) -> tuple[int, ...]:
        """The layers that it looks at to rank tokens before layer `boundary`."""
        ...

    def scores(self, queries: mx.array, slot: Slot, scale: float, end: int, window: int | None) -> mx.array:
        """Scores [maps, n], float32, of a slot's n rows at one layer; each map is pooled, then the highest counts.

        The queries [1, heads, at most `queries`, head_dim] are at the positions that end before `end`.
        """
        ...


@dataclass(frozen=True)
class LastRow:
    """LazyLLM's own score (arXiv 2407.14057): the last token's attention, mean over the heads of one layer."""

    pool: int = 1

    def __post_init__(self) -> None:
        _check(self.queries, self.pool)

    @property
    def queries(self) -> int:
        return 1

    def layers(self, boundary: int, config: DecoderConfig) -> tuple[int, ...]:
        return _before(boundary, 1, config)

    def scores(self, queries: mx.array, slot: Slot, scale: float, end: int, window: int | None) -> mx.array:
        if window is None:
            return last_row_importance(queries, slot.rows.read(0)[0], scale)[None]
        return attention(queries, slot, scale, end, window).mean(axis=0)


@dataclass(frozen=True)
class Aggregated:
    """The last `queries` tokens' attention in `depth` layers, reduced over queries and over heads.

    One layer's ranking can fail where its neighbours' does not (arXiv 2602.16054), so the maximum over layers counts.
    Few heads look for what the question asks for (arXiv 2404.15574), each from a few words of the question; maxima over
    heads and queries find them, and means drown them.
    """

    queries: int = 24
    depth: int = 8
    over_queries: Reduction = "max"
    over_heads: Reduction = "max"
    pool: int = 63

    def __post_init__(self) -> None:
        _check(self.queries, self.pool)
        if self.depth < 1:
            raise InvalidOptionError(f"A scorer over {self.depth} layers does not exist; take at least one.")
        for reduction in (self.over_queries, self.over_heads):
            if reduction not in ("mean", "max"):
                raise InvalidOptionError(f"The reduction {reduction!r} does not exist; take 'mean' or 'max'.")

    def layers(self, boundary: int, config: DecoderConfig) -> tuple[int, ...]:
        return _before(boundary, self.depth, config)

    def scores(self, queries: mx.array, slot: Slot, scale: float, end: int, window: int | None) -> mx.array:
        weights = attention(queries, slot, scale, end, window)
        of_heads = weights.max(axis=1) if self.over_queries == "max" else weights.mean(axis=1)
        # The maximum over heads comes after pooling.
        return of_heads if self.over_heads == "max" else of_heads.mean(axis=0, keepdims=True)


def score(
    scorer: Scorer,
    boundary: int,
    watch: Watch,
    end: int,
    tokens: np.ndarray | OnDevice,
    decoder: Decoder,
    cache: KVCache,
) -> mx.array:
    """Scores [n], float32, not evaluated, of the tokens at positions `tokens` [n], ascending, before layer `boundary`.

    `watch` holds the queries; the last of them is at position `end - 1`. A token that a layer has no row of, because
    it lies outside of the layer's window, scores 0 there.
    """
    best = mx.zeros(len(tokens))
    for layer in scorer.layers(boundary, decoder.config):
        queries, slot = watch.seen[layer], cache.slot(layer)
        window = decoder.config.layers[layer].window
        scores = scorer.scores(queries, slot, decoder.blocks[layer].scale, end, window)
        highest = pooled(_at(scores, slot, tokens), scorer.pool).max(axis=0)
        best = mx.maximum(best, highest)
    return best


def pooled(scores: mx.array, width: int) -> mx.array:
    """Each of scores [maps, n] averaged with its neighbours, over `width` tokens around it (fewer at the ends)."""
    n = scores.shape[1]
    if width == 1:
        return scores
    before = width // 2
    total = mx.cumsum(mx.pad(scores, [(0, 0), (before + 1, width - 1 - before)]), axis=1)
    return (total[:, width:] - total[:, :n]) / _neighbours(n, width)


@lru_cache(maxsize=8)
def _neighbours(n: int, width: int) -> mx.array:
    """How many of n tokens are among the `width` around each, itself included: float32 [n]."""
    first = np.arange(n) - width // 2
    return mx.array((np.minimum(first + width, n) - np.maximum(first, 0)).astype(np.float32))


def attention(queries: mx.array, slot: Slot, scale: float, end: int, window: int | None) -> mx.array:
    """Softmax weights [heads, queries, n], float32, of queries [1, heads, queries, head_dim] over a slot's n rows.

    The queries are at the positions that end before `end`, one after the other.
    """
    keys, _ = slot.rows.read(0)
    _, heads, count, dim = queries.shape
    groups = keys.shape[1]
    grouped = queries.astype(mx.float32).reshape(groups, heads // groups * count, dim)
    # An index in place of `squeeze` would copy the keys.
    products = (grouped * scale) @ keys.squeeze(0).astype(mx.float32).swapaxes(-1, -2)
    products = products.reshape(heads, count, -1)
    by_all = 0 if window is not None else _seen_by_all(slot, end - count, end)
    if by_all < slot.rows.length:
        # On the device, where all pairs of a prompt's rows cost next to nothing; as float32, exact up to 16 M tokens.
        chosen = slot.chosen
        rows = mx.array(slot.positions[by_all:].astype(np.float32)) if chosen is None else chosen.array[by_all:]
        where = mx.arange(end - count, end)[:, None] - rows[None, :]
        seen = where >= 0 if window is None else (where >= 0) & (where < window)
        products[..., by_all:] = mx.where(seen, products[..., by_all:], -math.inf)
    return mx.softmax(products, axis=-1)


def _seen_by_all(slot: Slot, first: int, end: int) -> int:
    """How many rows at a slot's beginning lie at or before position `first`, or fewer; 0 if they are out of order."""
    if slot.chosen is not None and slot.chosen.end == end:
        # Of n ascending whole positions before `end` all but the last `end - 1 - first` must.
        return max(0, slot.rows.length - (end - 1 - first))
    positions = slot.positions
    ordered = bool((positions[1:] >= positions[:-1]).all())
    return int(np.searchsorted(positions, first, side="right")) if ordered else 0


def _at(scores: mx.array, slot: Slot, at: np.ndarray | OnDevice) -> mx.array:
    """Scores [maps, rows] of a slot's rows, as scores of the tokens at some positions; 0 where the slot has no row."""
    if slot.chosen is at:
        return scores
    if isinstance(at, OnDevice):
        rows = mx.array(slot.positions.astype(np.int32)) if slot.chosen is None else slot.chosen.array
        index = mx.full((at.end,), -1, dtype=mx.int32)
        index[rows] = mx.arange(rows.shape[0], dtype=mx.int32)
        found = index[at.array]
        return mx.where(found >= 0, scores[:, mx.maximum(found, 0)], 0.0)
    rows = slot.positions
    if len(rows) == len(at) and np.array_equal(rows, at):
        return scores
    order = np.argsort(rows, kind="stable")
    found = np.minimum(np.searchsorted(rows[order], at), len(rows) - 1)
    there = rows[order][found] == at
    picked = scores[:, mx.array(order[found].astype(np.int32))]
    return picked if there.all() else mx.where(mx.array(there), picked, 0.0)  # type: ignore[arg-type]


def _before(boundary: int, depth: int, config: DecoderConfig) -> tuple[int, ...]:
    """The last `depth` layers before `boundary` that see the whole prompt, or of all where each has a window."""
    whole = [i for i in range(boundary) if config.layers[i].window is None]
    return tuple((whole or list(range(boundary)))[-depth:])


def _check(queries: int, pool: int) -> None:
    if queries < 1 or pool < 1:
        raise InvalidOptionError(
            f"A scorer with {queries} queries that pools {pool} tokens does not exist; both must be at least 1."
        )
