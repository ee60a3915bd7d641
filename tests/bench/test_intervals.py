from __future__ import annotations

import math

import numpy as np
import pytest

from russet.bench.intervals import (
    bits,
    bits_difference,
    difference,
    mean,
    median,
    perplexity,
    perplexity_ratio,
    proportion,
    retention,
)


def test_wilsons_interval_is_the_published_one_and_never_empty() -> None:
    found = proportion([1.0] * 8 + [0.0] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    whole = proportion([1.0] * 25)
    assert (whole.high, whole.low) == pytest.approx((1.0, 0.8668), abs=1e-4)


def test_bootstrap_intervals_are_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400).tolist()
    found = mean(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.1)
    assert mean(values) == found
    assert median([1.0, 2.0, 100.0]).value == 2.0


def test_paired_rows_share_their_noise() -> None:
    exact = np.random.default_rng(2).random(100)
    shifted = difference((exact - 0.25).tolist(), exact.tolist())
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((-0.25, -0.25, -0.25))
    kept = retention((0.8 * exact).tolist(), exact.tolist())
    assert kept is not None
    assert (kept.value, kept.low, kept.high) == pytest.approx((0.8, 0.8, 0.8))


def test_nothing_can_be_retained_of_nothing() -> None:
    assert retention([1.0, 0.0], [0.0, 0.0]) is None
    rare = retention([0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    assert rare is not None and (rare.low, rare.high) == (1.0, 1.0)


def test_perplexities_weigh_rows_by_what_they_are_spread_over() -> None:
    found = perplexity([-2.0, -6.0], [1, 3])
    assert found.value == pytest.approx(math.exp(2)) and found.low == pytest.approx(found.high)
    spread = perplexity([-1.0, -9.0, -4.0], [1, 3, 2])
    assert spread.value == pytest.approx(math.exp(14 / 6)) and spread.low < spread.value < spread.high
    assert bits([-2.0, -6.0], [1, 3]).value == pytest.approx(2 / math.log(2))


def test_perplexities_are_compared_row_by_row() -> None:
    ours, theirs, weights = [-1.0, -9.0, -4.0], [-1.1, -9.3, -4.2], [1, 3, 2]
    ratio = perplexity_ratio(ours, theirs, weights)
    assert ratio.value == pytest.approx(perplexity(ours, weights).value / perplexity(theirs, weights).value)
    assert ratio.low == pytest.approx(math.exp(-0.1)) and ratio.high == pytest.approx(math.exp(-0.1))
    assert bits_difference(ours, theirs, weights).value == pytest.approx(-0.6 / 6 / math.log(2))
