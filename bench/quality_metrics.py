"""What a task's rows amount to: accuracies, means and perplexities with their intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from russet.bench import intervals
from russet.bench.intervals import Estimate

Kind = Literal["proportion", "mean", "perplexity", "bits"]

Values = dict[str, float]
"""Column -> value, of one row."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure over rows, made of `column` and, for perplexities and bits, of the column `weight`.

    `proportion` is a mean of zeros and ones, `mean` of anything from 0 to 1. `column` of the other two is a log
    probability in nats and `weight` what it is spread over: tokens, words or bytes; none counts each row once.
    `perplexity` is exp(-sum(column) / sum(weight)), `bits` the exponent in base 2.
    """

    name: str
    kind: Kind
    column: str
    weight: str | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.kind in ("proportion", "mean")

    @property
    def is_ratio(self) -> bool:
        """Whether two models are compared by a ratio rather than a difference."""
        return self.kind == "perplexity"

    def applies(self, rows: Sequence[Values]) -> bool:
        """Whether there are rows, and all of them have what the metric is made of."""
        return bool(rows) and all(self.column in row for row in rows)

    def estimate(self, rows: Sequence[Values]) -> Estimate:
        """The figure with its 95 % interval."""
        values = [row[self.column] for row in rows]
        if self.kind == "proportion":
            return intervals.proportion(values)
        if self.kind == "mean":
            return intervals.mean(values)
        over = intervals.perplexity if self.kind == "perplexity" else intervals.bits
        return over(values, self._weights(rows))

    def compare(self, ours: Sequence[Values], theirs: Sequence[Values]) -> Estimate | None:
        """Ours minus theirs, or ours over theirs for a perplexity, over the same rows in the same order.

        None where a perplexity is spread over other tokens, as two tokenizers make them.
        """
        left, right = ([row[self.column] for row in rows] for rows in (ours, theirs))
        if self.kind in ("proportion", "mean"):
            return intervals.difference(left, right)
        weights = self._weights(ours)
        if weights != self._weights(theirs):
            return None
        over = intervals.perplexity_ratio if self.is_ratio else intervals.bits_difference
        return over(left, right, weights)

    def _weights(self, rows: Sequence[Values]) -> list[float]:
        return [1.0 if self.weight is None else row[self.weight] for row in rows]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
