from __future__ import annotations

import pytest

from russet.bench.stats import Summary, ratio


def test_a_summary_keeps_the_order_of_its_values() -> None:
    found = Summary((3.0, 1.0, 2.0, 10.0)).to_dict()
    assert found.pop("stdev") == pytest.approx(4.0825, abs=1e-4)  # n − 1
    assert found.pop("p95") == pytest.approx(3 + 0.85 * 7)
    assert found == {"median": 2.5, "mean": 4.0, "min": 1.0, "max": 10.0, "values": [3.0, 1.0, 2.0, 10.0]}


def test_a_single_value_has_no_deviation() -> None:
    found = Summary((2.0,))
    assert (found.stdev, found.p95, found.mean) == (0.0, 2.0, 2.0)


def test_the_ratio_is_of_medians_and_its_spread_is_within_rounds() -> None:
    found = ratio([10, 20, 40], [10, 10, 10])
    assert (found.median, found.lowest, found.highest) == (2.0, 1.0, 4.0)


def test_noise_that_both_share_does_not_widen_the_spread() -> None:
    slow_round = ratio([10, 1, 10], [5, 0.5, 5])
    assert (slow_round.median, slow_round.lowest, slow_round.highest) == (2.0, 2.0, 2.0)


def test_the_same_engine_twice_has_ratio_one() -> None:
    assert ratio([3.0, 4.0], [3.0, 4.0]).median == 1


def test_a_round_that_only_one_finished_is_left_out_of_the_spread() -> None:
    found = ratio([10, 10, 90], [5, 5])
    assert (found.median, found.highest) == (2, 2)
    with pytest.raises(ValueError, match="median"):
        ratio([], [1.0])
