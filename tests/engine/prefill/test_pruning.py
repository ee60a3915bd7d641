"""Schedules count tokens as the papers state them; selection keeps what must stay."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.pruning import Linear, Staged, TwoCuts, parse_schedule, select


def linear_cost(kept: dict[int, int], layers: int, tokens: int) -> float:
    """Layers times tokens, as a share of all of them."""
    counts = [min([count for layer, count in kept.items() if layer <= i], default=tokens) for i in range(layers)]
    return sum(counts) / (layers * tokens)


def test_stages_keep_a_share_of_what_remains() -> None:
    assert Staged({0.6: 0.5, 0.3: 0.3}).kept(30, 1000) == {9: 300, 18: 150}


def test_the_papers_groups_of_llama_2_7b() -> None:
    kept = Staged({0.3: 0.7, 0.6: 0.7, 0.9: 0.7}).kept(32, 1000)
    assert kept == {9: 700, 19: 490, 28: 343}


@pytest.mark.parametrize(("start", "end", "speed_up"), [(0.75, 0.5, 1.38), (0.75, 0.25, 1.60), (0.75, 0.01, 1.89)])
def test_linear_costs_what_the_kv_prediction_paper_reports(start: float, end: float, speed_up: float) -> None:
    kept = Linear(start, end).kept(1000, 100_000)
    assert 1 / linear_cost(kept, 1000, 100_000) == pytest.approx(speed_up, abs=0.006)
    assert kept[300] == round(start * 100_000) and kept[900] == round(end * 100_000)
    assert min(kept) == 300 and max(kept) == 900


@given(
    st.dictionaries(st.floats(0.01, 1), st.floats(0.01, 1), max_size=4),
    st.integers(1, 60),
    st.integers(1, 3000),
)
def test_numbers_fall_over_layers_that_exist(shares: dict[float, float], layers: int, tokens: int) -> None:
    kept = Staged(shares).kept(layers, tokens)
    assert list(kept) == sorted(kept) and all(1 <= layer < layers for layer in kept)
    counts = [tokens, *kept.values()]
    assert all(1 <= after < before for before, after in pairwise(counts))


def test_keeping_all_prunes_nowhere() -> None:
    assert Staged({0.3: 1.0, 0.6: 1.0}).kept(30, 500) == {}
    assert Linear(1.0, 1.0).kept(30, 500) == {}


def test_a_model_of_one_layer_has_no_boundary() -> None:
    assert Staged({0.3: 0.5}).kept(1, 500) == {}


@pytest.mark.parametrize("shares", [{0.0: 0.5}, {1.2: 0.5}, {0.5: 0.0}, {0.5: 1.5}, {0.5: float("nan")}])
def test_shares_and_depths_are_checked(shares: dict[float, float]) -> None:
    with pytest.raises(InvalidOptionError, match="must be above 0 and at most 1"):
        Staged(shares)


@pytest.mark.parametrize("arguments", [(0.5, 0.75), (0.75, 0.5, 0.9, 0.3)])
def test_linear_must_fall(arguments: tuple[float, ...]) -> None:
    with pytest.raises(InvalidOptionError, match="shares must fall, and depths must rise"):
        Linear(*arguments)


def test_two_cuts_leave_more_of_a_short_prompt() -> None:
    assert TwoCuts(0.1, 225).kept(10, 4000) == {3: round(4000 * 0.1 ** (2 / 3)), 6: 400}
    # As a `keep` of 225 / 1024 would, at both cuts.
    assert TwoCuts(0.1, 225).kept(30, 1024) == TwoCuts(225 / 1024, 1).kept(30, 1024) == {9: 373, 18: 225}
    assert TwoCuts(0.1, 225).kept(10, 225) == {}
    assert TwoCuts(1.0, 1).kept(10, 1000) == {}


def test_selection_takes_the_best_and_the_protected_in_order() -> None:
    scores = mx.array([0.0, 0.1, 0.9, 0.2, 0.8, 0.3, 0.0, 0.0])
    assert select(scores, 5, first=1, last=2).tolist() == [0, 2, 4, 6, 7]


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60),
    st.integers(1, 60),
    st.integers(0, 8),
    st.integers(0, 8),
)
def test_selection_ranks_by_score_and_then_by_place(scores: list[float], count: int, first: int, last: int) -> None:
    n = len(scores)
    ranked = [2.0 if i < first or i >= n - last else score for i, score in enumerate(scores)]
    best = sorted(range(n), key=lambda i: (ranked[i], i))[n - min(n, max(count, first + last)) :]
    assert select(mx.array(scores), count, first, last).tolist() == sorted(best)


def test_protected_tokens_may_be_more_than_asked_for() -> None:
    assert select(mx.zeros(8), 2, first=3, last=3).tolist() == [0, 1, 2, 5, 6, 7]
    assert select(mx.zeros(4), 1, first=3, last=3).tolist() == [0, 1, 2, 3]


def test_of_equal_scores_the_later_token_stays() -> None:
    assert select(mx.zeros(6), 3, first=0, last=1).tolist() == [3, 4, 5]


def test_schedules_have_names() -> None:
    assert parse_schedule("0.6-0.1") == Linear(0.6, 0.1) and parse_schedule(".5") is parse_schedule("0.5@") is None
    staged = parse_schedule("0.5@0.3/0.25@0.6")
    assert staged is not None and staged.kept(30, 1000) == {9: 500, 18: 250}
    for text in ("0.5@0.3/0.6@0.6", "0.5@0.3/0.2@0.3", "0.5@0.6/0.2@0.3", "0@0.3", "0.1-0.6", "0.3@2"):
        with pytest.raises(InvalidOptionError):
            parse_schedule(text)
