"""LazyLLM's Aux Cache, and decoding that computes dropped tokens further once they matter (arXiv 2407.14057)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from russet.engine.cache import KVCache
from russet.engine.prefill.base import Work
from russet.engine.prefill.importance import Scorer, Watch, score
from russet.models.decoder import Decoder
from russet.models.rope import Positions


@dataclass
class Dropped:
    """The tokens dropped before one layer: its input for them, [1, n, hidden], and their positions [n], ascending.

    `waiting` says which of them have not been computed further yet.
    """

    hidden: mx.array
    positions: np.ndarray
    waiting: np.ndarray

    def take(self, chosen: np.ndarray) -> mx.array:
        """The rows of `chosen`, indices into `positions`, which wait no longer."""
        self.waiting[chosen] = False
        return self.hidden[:, mx.array(chosen.astype(np.int32))]


class AuxCache:
    """What was dropped, by the layer before which it was."""

    def __init__(self) -> None:
        self.dropped: dict[int, Dropped] = {}

    def put(self, boundary: int, hidden: mx.array, positions: np.ndarray) -> None:
        """Keep the inputs [1, n, hidden] of layer `boundary` for tokens that it does not compute."""
        self.dropped[boundary] = Dropped(hidden, positions, np.ones(len(positions), dtype=bool))

    def arrays(self) -> list[mx.array]:
        """Every buffer, for evaluation."""
        return [dropped.hidden for dropped in self.dropped.values()]

    @property
    def waiting(self) -> bool:
        """Whether any token is left that could be computed further."""
        return any(dropped.waiting.any() for dropped in self.dropped.values())

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in self.arrays())


class Revival:
    """Takes the place of `Decoder.extend` in decoding.

    At every boundary the new token's attention in the layers before it ranks the prompt's tokens, as the prompt's last
    tokens' did in prefill. Of those that rank among the `plan[boundary]` best and were dropped there, the best `budget`
    are computed through the layers that follow, together with the new token, and so join the cache. A token passes a
    layer at most once, since it leaves the Aux Cache as it does. After `steps` steps, or with nothing left to revive,
    it is the decoder's own `extend`.
    """

    def __init__(
        self,
        decoder: Decoder,
        scorer: Scorer,
        plan: dict[int, int],
        prompt: np.ndarray,
        aux: AuxCache,
        budget: int,
        steps: int,
        work: Work,
    ) -> None:
        self._decoder = decoder
        self._scorer = scorer
        self._plan = plan
        self._known = prompt
        self._aux = aux
        self._budget = budget
        self._steps = steps
        self._work = work
        self._layers = {layer for boundary in plan for layer in scorer.layers(boundary, decoder.config)}

    def __call__(self, tokens: mx.array, cache: KVCache) -> mx.array | None:
        """Append one token [1, 1]; logits [1, 1, vocab]."""
        if self._steps <= 0 or not self._aux.waiting or tokens.shape[1] != 1:
            return self._decoder.extend(tokens, cache)
        self._steps -= 1
        decoder, position = self._decoder, cache.next_position
        writer, count = decoder.config.last_writer, len(decoder.blocks)
        watch = Watch(self._layers, 1)
        h, revived = decoder.embed(tokens), np.zeros(0)
        known = self._known
        first = 0
        for boundary in self._plan:
            h = decoder.run(h, range(first, boundary), _joined(revived, position), cache, probe=watch)
            self._count(first, boundary, len(revived))
            h, revived, known = self._revive(boundary, watch, known, h, revived, position, cache)
            first = boundary
        h = decoder.run(h, range(first, writer + 1), _joined(revived, position), cache, last=1)
        self._count(first, writer + 1, len(revived))
        if writer + 1 < count:
            h = decoder.run(h, range(writer + 1, count), position, cache)
        cache.next_position = position + 1
        return decoder.head(h)

    def _revive(
        self,
        boundary: int,
        watch: Watch,
        known: np.ndarray,
        h: mx.array,
        revived: np.ndarray,
        position: int,
        cache: KVCache,
    ) -> tuple[mx.array, np.ndarray, np.ndarray]:
        """Rows that go on at a boundary, the revived ones' positions, and the tokens that layers behind it know."""
        dropped = self._aux.dropped[boundary]
        if dropped.waiting.any():
            scores = np.array(score(self._scorer, boundary, watch, position + 1, known, self._decoder, cache))
            chosen = _chosen(scores, known, dropped, self._plan[boundary], self._budget)
            if len(chosen):
                h = mx.concatenate([dropped.take(chosen), h], axis=1)
                revived = np.concatenate([dropped.positions[chosen], revived])
        return h, revived, np.setdiff1d(known, dropped.positions[dropped.waiting], assume_unique=True)

    def _count(self, first: int, end: int, revived: int) -> None:
        for layer in range(first, end):
            self._work.revived += revived
            if layer < self._decoder.config.last_writer:
                self._work.layer_tokens[layer] += revived


def _chosen(scores: np.ndarray, known: np.ndarray, dropped: Dropped, kept: int, budget: int) -> np.ndarray:
    """Indices into the dropped tokens, ascending: the best `budget` of those among the `kept` best of all."""
    best = np.argsort(-scores, kind="stable")[:kept]
    waiting = np.flatnonzero(dropped.waiting)
    places = np.searchsorted(known, dropped.positions[waiting])
    rank = np.full(len(known), kept, dtype=np.int64)
    rank[best] = np.arange(len(best))
    ranks = rank[places]
    order = np.argsort(ranks, kind="stable")[:budget]
    return np.sort(waiting[order[ranks[order] < kept]])


def _joined(revived: np.ndarray, position: int) -> Positions:
    """Positions of revived rows and the new token's."""
    return np.append(revived, position) if len(revived) else position
