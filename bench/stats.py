"""What repeated runs say: a median with its spread, and how two contenders compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """Repeated values of one quantity, in the order in which they were measured."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def stdev(self) -> float:
        """Of the sample (n − 1); 0 for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def p95(self) -> float:
        """The 95th percentile, between two values by linear interpolation; of few runs it is close to the highest."""
        return float(np.percentile(self.values, 95))

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "mean": self.mean,
            "stdev": self.stdev,
            "p95": self.p95,
            "min": self.lowest,
            "max": self.highest,
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """One contender over another: the ratio of medians, and the lowest and highest ratio within one round."""

    median: float
    lowest: float
    highest: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare paired values, none of them 0; the runs of one round stood next to each other, so their noise is shared.

    A round in which only one of the two finished counts in the medians and not in the spread.
    """
    pairs = [a / b for a, b in zip(ours, theirs, strict=False)]
    return Ratio(statistics.median(ours) / statistics.median(theirs), min(pairs), max(pairs))
