"""Where the parts of a superposed prompt lie, and running them: documents side by side, each with its own query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from russet.engine import likelihood
from russet.engine.cache import KVCache
from russet.engine.prefill.base import Segments
from russet.engine.prefill.branches import BranchCache, Rows, join
from russet.models.decoder import Decoder, Probe
from russet.models.rope import contiguous

Spacing = Literal["equilibrium", "left"]

HEAD_ROWS = 256
"""Rows whose logits are held at once for scoring: a row takes 4 bytes for each word of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of a prompt's parts: one array a document, and where query, task and reply begin."""

    documents: tuple[np.ndarray, ...]
    query: int
    task: int
    end: int


def lay_out(parts: Segments, spacing: Spacing) -> Layout:
    """Equilibrium or left-aligned positions (arXiv 2404.06910, `flows/` of apple/ml-superposition-prompting).

    At equilibrium all documents are stretched or squeezed to the harmonic mean of their lengths, so that the query
    stands right behind each. The mean is rounded, which keeps query, task and reply on whole positions. Left-aligned
    documents keep their lengths, and the query stands behind the longest.
    """
    start = len(parts.preamble)
    lengths = np.array([len(document) for document in parts.documents], dtype=np.float64)
    span = int(lengths.max()) if spacing == "left" else max(1, round(len(lengths) / (1 / lengths).sum()))
    steps = np.ones_like(lengths) if spacing == "left" else span / lengths
    documents = tuple(start + np.arange(int(n)) * step for n, step in zip(lengths, steps, strict=True))
    query = start + span
    task = query + len(parts.query)
    return Layout(documents, query, task, task + len(parts.task))


def packed(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in groups of at most `limit` rows together; a longer one is a group by itself."""
    group: list[int] = []
    room = limit
    for i, length in enumerate(lengths):
        if group and length > room:
            yield group
            group, room = [], limit
        group.append(i)
        room -= length
    if group:
        yield group


class Path(NamedTuple):
    """Tokens that follow one another on one branch, at positions [tokens]."""

    tokens: Sequence[int]
    positions: np.ndarray
    branch: int


class LogProbabilities(NamedTuple):
    """log p of tokens in nats, float32 [tokens], and the branch of each."""

    values: mx.array
    branches: np.ndarray


class Runner:
    """Runs paths through a decoder in pieces of `chunk` rows, and counts the tokens that each layer computed."""

    def __init__(self, decoder: Decoder, cache: KVCache, chunk: int) -> None:
        self.layer_tokens = [0] * len(decoder.blocks)
        self._decoder = decoder
        self.cache = cache
        self.chunk = chunk

    def run(
        self, paths: Sequence[Path], context: Sequence[Rows], *, score: bool, probe: Probe | None = None
    ) -> tuple[Rows, list[LogProbabilities]]:
        """The rows of all paths over `context`; with `score`, log p of every token but each path's first too."""
        decoder = self._decoder
        tokens = np.concatenate([np.asarray(path.tokens) for path in paths])
        positions = np.concatenate([path.positions for path in paths])
        branches = np.concatenate([np.full(len(path.tokens), path.branch) for path in paths])
        predicts = np.append(branches[1:] == branches[:-1], False)
        layers = len(decoder.blocks) if score else decoder.config.last_writer + 1
        self._count(len(tokens), layers if score else layers - 1)
        done: list[Rows] = []
        logs: list[LogProbabilities] = []
        for start in range(0, len(tokens), self.chunk):
            piece = slice(start, start + self.chunk)
            seen = BranchCache(self.cache, [*context, *done], positions[piece], branches[piece])
            where = contiguous(positions[piece])
            h = decoder.embed(mx.array(tokens[piece])[None])
            h = decoder.run(h, range(layers), where, seen, last=None if score else 0, probe=probe)
            done.append(seen.written)
            at = np.flatnonzero(predicts[piece])
            if score and len(at):
                values = log_probabilities(decoder, h[:, mx.array(at)], mx.array(tokens[start + at + 1]))
                logs.append(LogProbabilities(values, branches[start + at]))
            mx.async_eval(*done[-1].arrays(), *(log.values for log in logs[-1:]))
        return join(done), logs

    def _count(self, tokens: int, layers: int) -> None:
        for i in range(layers):
            self.layer_tokens[i] += tokens


def log_probabilities(decoder: Decoder, h: mx.array, targets: mx.array) -> mx.array:
    """log p of `targets` [rows] by hidden rows [1, rows, hidden], float32 [rows]."""
    values = []
    for start in range(0, h.shape[1], HEAD_ROWS):
        logits = decoder.head(h[:, start : start + HEAD_ROWS])[0]
        values.append(likelihood.log_probabilities(logits, targets[start : start + HEAD_ROWS]))
    return mx.concatenate(values)


def means(logs: Sequence[LogProbabilities], branches: int) -> np.ndarray:
    """The mean log p of each branch, float64 [branches]; nan for one that has none."""
    if not logs:
        return np.full(branches, np.nan)
    values = np.array(mx.concatenate([log.values for log in logs]), dtype=np.float64)
    where = np.concatenate([log.branches for log in logs])
    counts = np.bincount(where, minlength=branches)
    sums = np.bincount(where, weights=values, minlength=branches)
    return np.divide(sums, counts, out=np.full(branches, np.nan), where=counts > 0)
