"""95 % confidence intervals of scores and of paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 2000
SEED = 20240719


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def proportion(scores: Sequence[float]) -> Estimate:
    """The mean of scores that are 0 or 1, with Wilson's score interval: never empty, also where all are right."""
    n, p = len(scores), sum(scores) / len(scores)
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float]) -> Estimate:
    """The mean, its interval by bootstrap over rows."""
    return _bootstrap(lambda found: found[0].mean(axis=-1), values)


def median(values: Sequence[float]) -> Estimate:
    """The median, its interval by bootstrap over rows."""
    return _bootstrap(lambda found: np.median(found[0], axis=-1), values)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean of `ours` − `theirs`, row by row."""
    return mean(np.subtract(ours, theirs).tolist())


def retention(ours: Sequence[float], theirs: Sequence[float]) -> Estimate | None:
    """Mean of `ours` over mean of `theirs`, rows drawn in pairs; None where `theirs` has nothing to retain."""
    if not any(theirs):
        return None

    def share(found: np.ndarray) -> np.ndarray:
        means = found.mean(axis=-1)
        # A resample in which exact prefill scores nothing has no share; it counts as neither better nor worse.
        return np.divide(means[0], means[1], out=np.full_like(means[0], np.nan), where=means[1] > 0)

    return _bootstrap(share, ours, theirs)


def perplexity(logs: Sequence[float], weights: Sequence[float]) -> Estimate:
    """exp(-sum(logs) / sum(weights)), its interval by bootstrap over rows; `logs` are in nats."""
    return _bootstrap(lambda found: np.exp(-_rate(found[0], found[1])), logs, weights)


def bits(logs: Sequence[float], weights: Sequence[float]) -> Estimate:
    """-sum(logs) / sum(weights) in bits, its interval by bootstrap over rows; `logs` are in nats."""
    return _bootstrap(lambda found: -_rate(found[0], found[1]) / math.log(2), logs, weights)


def perplexity_ratio(ours: Sequence[float], theirs: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Perplexity of `ours` over that of `theirs`, rows drawn in pairs."""
    return _bootstrap(lambda found: np.exp(-_rate(found[0] - found[1], found[2])), ours, theirs, weights)


def bits_difference(ours: Sequence[float], theirs: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Bits of `ours` - those of `theirs`, rows drawn in pairs."""
    return bits(np.subtract(ours, theirs).tolist(), weights)


def _rate(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return logs.sum(axis=-1) / weights.sum(axis=-1)


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], *columns: Sequence[float]) -> Estimate:
    """`statistic` takes [columns, ..., rows] to [...]; percentile interval over rows drawn with replacement."""
    table = np.array(columns, dtype=float)
    rows = table.shape[1]
    drawn = np.random.default_rng(SEED).integers(rows, size=(RESAMPLES, rows))
    low, high = np.nanpercentile(statistic(table[:, drawn]), [2.5, 97.5])
    return Estimate(float(statistic(table)), float(low), float(high))
