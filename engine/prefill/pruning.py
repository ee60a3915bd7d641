"""Which tokens of a prompt go on at which layer: schedules say how many, `select` says which."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from russet.engine.errors import InvalidOptionError

FIRST = 4
"""Tokens at the start of a sequence that are never dropped: they take the attention that finds nothing else
(attention sinks, arXiv 2309.17453)."""

LAST = 32
"""Tokens at the end of a prompt that are never dropped: as a rule the end of the question and the template's tail."""


class Schedule(Protocol):
    """How many tokens each layer computes."""

    def kept(self, layers: int, tokens: int) -> dict[int, int]:
        """{layer: tokens that it and the layers after it compute}, for the layers where the number falls.

        `layers` is the number of layers that prefill runs whole prompts through, `tokens` the length of the prompt.
        """
        ...


@dataclass(frozen=True)
class Staged:
    """LazyLLM's staged pruning (arXiv 2407.14057, figure 4).

    `shares` maps a depth, as a share of the layers, to the share of the remaining tokens that go on from there. Raises
    `InvalidOptionError` for depths or shares that are none.
    """

    shares: Mapping[float, float]

    def __post_init__(self) -> None:
        for depth, share in self.shares.items():
            _check("depth", depth)
            _check("share", share)

    def kept(self, layers: int, tokens: int) -> dict[int, int]:
        wanted: dict[int, float] = {}
        share = 1.0
        for depth in sorted(self.shares):
            share *= self.shares[depth]
            wanted[_layer(depth, layers)] = share
        return _falling(wanted, layers, tokens)


@dataclass(frozen=True)
class TwoCuts:
    """Cuts at 30 % and 60 % of the depth that leave `keep` of the prompt, or `least` tokens of it, to the last layers.

    Where `least` counts, the first cut leaves more as well: the second cannot bring back what it loses. Raises
    `InvalidOptionError` for a share that is none.
    """

    keep: float
    least: int

    def __post_init__(self) -> None:
        _check("share", self.keep)

    def kept(self, layers: int, tokens: int) -> dict[int, int]:
        share = min(1.0, max(self.keep, self.least / tokens))
        return _falling({_layer(0.3, layers): share ** (2 / 3), _layer(0.6, layers): share}, layers, tokens)


@dataclass(frozen=True)
class Linear:
    """A share of the prompt that falls from `start` to `end`, in equal steps a layer, between two depths.

    The KV Prediction paper (arXiv 2410.08391) measures LazyLLM with it, from 30 % to 90 % of the depth. Raises
    `InvalidOptionError` for depths or shares that are none.
    """

    start: float
    end: float
    begin_depth: float = 0.3
    end_depth: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("begin depth", self.begin_depth), ("end depth", self.end_depth)):
            _check(name, value)
        for name, value in (("start", self.start), ("end", self.end)):
            _check(name, value)
        if self.end > self.start or self.end_depth < self.begin_depth:
            raise InvalidOptionError(
                f"A linear schedule goes from {self.start} at depth {self.begin_depth} to {self.end} at depth "
                f"{self.end_depth}; shares must fall, and depths must rise."
            )

    def kept(self, layers: int, tokens: int) -> dict[int, int]:
        first, last = _layer(self.begin_depth, layers), _layer(self.end_depth, layers)
        steps = max(1, last - first)
        fall = (self.start - self.end) / steps
        wanted = {first + i: self.start - fall * i for i in range(last - first + 1)}
        return _falling(wanted, layers, tokens)


def parse_schedule(text: str) -> Schedule | None:
    """The schedule that `START-END` or `SHARE@DEPTH/SHARE@DEPTH` stands for; None where it is written otherwise.

    `0.6-0.1` is `Linear(0.6, 0.1)`. `0.5@0.3/0.25@0.6` leaves half of the prompt to the layers from 30 % of the depth
    on, and a quarter to those from 60 % on. Raises `InvalidOptionError` for depths or shares that are none.
    """
    number = r"(\d*\.?\d+)"
    if found := re.fullmatch(f"{number}-{number}", text):
        return Linear(float(found[1]), float(found[2]))
    stages = [re.fullmatch(f"{number}@{number}", stage) for stage in text.split("/")]
    shares, left = {}, 1.0
    for found in stages:
        if found is None:
            return None
        share, depth = float(found[1]), float(found[2])
        if depth in shares or (shares and depth < max(shares)) or not 0 < share <= left:
            raise InvalidOptionError(
                f"In the schedule {text} depths must rise and shares fall, from 1 at the start to above 0."
            )
        shares[depth] = share / left
        left = share
    return Staged(shares)


def select(scores: mx.array, count: int, first: int, last: int) -> mx.array:
    """The `count` tokens that go on, as sorted indices into `scores` [n]: int32, not evaluated.

    The first `first` and the last `last` are among them, even where they are more than `count`; the others are those
    of the highest score, and of equal scores the later ones.
    """
    n = scores.shape[0]
    count = min(n, max(count, min(n, first + last)))
    index = mx.arange(n, dtype=mx.int32)
    ranked = mx.where((index < first) | (index >= n - last), math.inf, scores)
    lowest = mx.sort(ranked)[n - count]
    above, level = ranked > lowest, ranked == lowest
    from_here = mx.cumsum(level.astype(mx.int32), reverse=True)
    chosen = above | (level & (from_here <= count - above.astype(mx.int32).sum()))
    return mx.sort(mx.where(chosen, index, n))[:count]


def _layer(depth: float, layers: int) -> int:
    """The first layer at a depth, rounded down; layer 0 has no attention before it that could rank tokens."""
    return max(1, int(depth * layers + 1e-9))


def _falling(wanted: dict[int, float], layers: int, tokens: int) -> dict[int, int]:
    """Whole numbers of tokens, for the layers that exist and where the number really falls."""
    kept: dict[int, int] = {}
    left = tokens
    for layer, share in sorted(wanted.items()):
        count = max(1, round(share * tokens))
        if layer < layers and count < left:
            kept[layer] = left = count
    return kept


def _check(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InvalidOptionError(f"The {name} {value} of a pruning schedule is none; it must be above 0 and at most 1.")
