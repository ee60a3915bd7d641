"""Whether two sets of repeated runs differ: a ratio with its 95 % interval, and the chance of it without a difference.

The test is Mann and Whitney's (Ann. Math. Stat. 18, 1947), as in Go's benchstat: it assumes no distribution, so one run
that the system disturbed decides nothing. The interval is Hodges and Lehmann's (Ann. Math. Stat. 34, 1963) on the
logarithms, from the same distribution. Fewer than 4 runs on either side cannot show anything at 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

LEVEL = 0.05

EXACT_RUNS = 50
"""Up to this many runs a side the distribution is counted; beyond, it is taken to be normal."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours over theirs: the ratio of medians, the ends of its 95 % interval (None with too few runs), and p."""

    ratio: float
    low: float | None
    high: float | None
    p: float

    @property
    def significant(self) -> bool:
        return self.p < LEVEL

    @property
    def enough(self) -> bool:
        """Whether there were enough runs to show a difference."""
        return self.low is not None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "significant": self.significant}


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare two sets of values above 0 that were measured independently of each other."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    low, high = _interval(ours, theirs)
    return Comparison(ratio, low, high, mann_whitney(ours, theirs))


def mann_whitney(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The two-sided p of values as far apart as these, where both come from one distribution.

    Ties count half; they make p a little too large, which errs on the side of saying nothing.
    """
    wins = sum((a > b) + 0.5 * (a == b) for a in ours for b in theirs)
    fewer = math.ceil(min(wins, len(ours) * len(theirs) - wins))
    return min(1.0, 2 * _at_most(fewer, len(ours), len(theirs)))


def _interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float | None, float | None]:
    """The ratios that the test would not reject: those of all pairs, without the outermost ones."""
    ratios = sorted(a / b for a in ours for b in theirs)
    cut = -1
    while 2 * _at_most(cut + 1, len(ours), len(theirs)) <= LEVEL:
        cut += 1
    return (ratios[cut], ratios[-1 - cut]) if cut >= 0 else (None, None)


def _at_most(wins: int, ours: int, theirs: int) -> float:
    """The chance that at most so many of all pairs are won by one side."""
    if max(ours, theirs) > EXACT_RUNS:
        middle, spread = ours * theirs / 2, math.sqrt(ours * theirs * (ours + theirs + 1) / 12)
        return statistics.NormalDist(middle, spread).cdf(wins + 0.5)
    counts = _orders(ours, theirs)
    return sum(counts[: wins + 1]) / math.comb(ours + theirs, ours)


@cache
def _orders(ours: int, theirs: int) -> tuple[int, ...]:
    """How many of the orders in which two sides' values can lie have 0, 1, 2, ... pairs won by ours.

    The coefficients of the Gaussian binomial, by multiplying and dividing polynomials (1 − x^k).
    """
    counts = [1] + [0] * (ours * theirs)
    for k in range(1, ours + 1):
        for i in range(len(counts) - 1, theirs + k - 1, -1):
            counts[i] -= counts[i - theirs - k]
        for i in range(k, len(counts)):
            counts[i] += counts[i - k]
    return tuple(counts)
