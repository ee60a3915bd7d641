"""Synthetic runs: what is the same is not called different, what differs is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from russet.bench.significance import compare, mann_whitney


def noisy(rng: np.random.Generator, runs: int, seconds: float, disturbed: float = 0.1) -> list[float]:
    """Runs with 2 % of noise, a share of them disturbed by another program."""
    longer = np.where(rng.random(runs) < disturbed, rng.uniform(1.1, 1.6, runs), 1.0)
    return (seconds * np.exp(rng.normal(0, 0.02, runs)) * longer).tolist()


def by_enumeration(ours: list[float], theirs: list[float]) -> float:
    """The test's definition: the share of all ways to deal out the values that are at least as far from the middle."""
    values, middle = ours + theirs, len(ours) * len(theirs) / 2

    def distance(places: tuple[int, ...]) -> float:
        mine = [values[i] for i in places]
        others = [value for i, value in enumerate(values) if i not in places]
        return abs(sum(a > b for a in mine for b in others) - middle)

    dealt = list(itertools.combinations(range(len(values)), len(ours)))
    seen = distance(tuple(range(len(ours))))
    return sum(distance(places) >= seen for places in dealt) / len(dealt)


def test_p_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    for ours, theirs in itertools.product((1, 3, 5), (2, 4, 5)):
        a, b = rng.random(ours).tolist(), (rng.random(theirs) * 1.3).tolist()
        assert mann_whitney(a, b) == pytest.approx(by_enumeration(a, b))
        assert mann_whitney(a, b) == pytest.approx(mann_whitney(b, a))


def test_many_runs_are_taken_to_be_normal() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 0.1, 50).tolist(), rng.normal(1.03, 0.1, 50).tolist()
    exact = mann_whitney(a, b)
    assert mann_whitney([*a, 1.0], b) == pytest.approx(exact, rel=0.15)


def test_the_same_thing_twice_has_ratio_1_within_its_error() -> None:
    rng = np.random.default_rng(5)
    found = [compare(noisy(rng, 5, 1.0), noisy(rng, 5, 1.0)) for _ in range(1000)]
    assert np.median([one.ratio for one in found]) == pytest.approx(1, abs=0.005)
    assert all(one.low is not None and one.high is not None and one.low <= one.ratio <= one.high for one in found)
    inside = sum(one.low <= 1 <= one.high for one in found)  # type: ignore[operator]
    called = sum(one.significant for one in found)
    assert inside >= 950 and called <= 50 and inside + called == 1000


def test_a_fifth_slower_is_flagged() -> None:
    rng = np.random.default_rng(6)
    found = [compare(noisy(rng, 5, 1.0, 0.01), noisy(rng, 5, 1.2, 0.01)) for _ in range(500)]
    assert sum(one.significant for one in found) > 475
    assert np.median([one.ratio for one in found]) == pytest.approx(1 / 1.2, rel=0.01)


def test_too_few_runs_show_nothing() -> None:
    found = compare([1.0, 1.01, 1.02], [9.0, 9.1, 9.2])
    assert not found.significant and not found.enough and (found.low, found.high) == (None, None)
    assert compare([1.0] * 4, [9.0] * 4).significant


def test_equal_values_are_no_difference() -> None:
    found = compare([2.0] * 5, [2.0] * 5)
    assert (found.ratio, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1.0)


def test_one_disturbed_run_decides_nothing() -> None:
    calm = [1.0, 1.01, 0.99, 1.02, 0.98]
    found = compare([*calm[:4], 40.0], calm)
    assert not found.significant and found.ratio == pytest.approx(1, abs=0.02)


def test_the_interval_is_made_of_ratios() -> None:
    ours, theirs = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 11.0, 12.0, 13.0, 14.0]
    found, doubled = compare(ours, theirs), compare([2 * value for value in ours], theirs)
    assert found.low and doubled.low and math.isclose(doubled.low, 2 * found.low)
