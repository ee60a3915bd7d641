"""Samplers and logit processors, against hand-computed arrays."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.engine.errors import InvalidOptionError
from russet.engine.options import GenerationOptions
from russet.engine.sampling import make_sampler, min_p, top_k, top_p

LOGITS = mx.log(mx.array([[0.1, 0.4, 0.2, 0.3]]))


def kept(logits: mx.array) -> list[int]:
    return [i for i, value in enumerate(np.array(logits)[0]) if value > -math.inf]


def draws(
    options: GenerationOptions, logits: mx.array = LOGITS, n: int = 400, prompt: tuple[int, ...] = ()
) -> list[int]:
    sample = make_sampler(options, prompt, logits.shape[-1])
    return [int(np.array(sample(mx.array(logits)))[0]) for _ in range(n)]


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_equals() -> None:
    assert draws(GenerationOptions(), n=1) == [1]
    assert draws(GenerationOptions(), mx.array([[0.0, 2.0, 2.0]]), n=1) == [1]


def test_filters_keep_what_they_say() -> None:
    assert kept(top_k(LOGITS, 2)) == [1, 3]
    assert kept(top_k(LOGITS, 9)) == [0, 1, 2, 3]
    assert kept(top_p(LOGITS, 0.65)) == [1, 3]
    assert kept(top_p(LOGITS, 0.75)) == [1, 2, 3]
    assert kept(top_p(LOGITS, 0.01)) == [1]
    assert kept(min_p(LOGITS, 0.6)) == [1, 3]
    assert kept(min_p(LOGITS, 0.2)) == [0, 1, 2, 3]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30),
    st.integers(1, 30),
    st.floats(0.05, 0.99),
    st.floats(0.01, 1.0),
)
def test_filters_never_remove_the_likeliest(logits: list[float], k: int, p: float, m: float) -> None:
    row = mx.array([logits])
    best = int(np.argmax(logits))
    for filtered in (top_k(row, k), top_p(row, p), min_p(row, m)):
        assert best in kept(filtered)


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    options = GenerationOptions(temperature=1.0, seed=7)
    assert draws(options) == draws(options)
    assert draws(options) != draws(GenerationOptions(temperature=1.0, seed=8))
    assert draws(GenerationOptions(temperature=1.0)) != draws(GenerationOptions(temperature=1.0))


def test_draws_follow_the_probabilities() -> None:
    counts = np.bincount(draws(GenerationOptions(temperature=1.0, seed=0), n=2000), minlength=4) / 2000
    assert np.allclose(counts, [0.1, 0.4, 0.2, 0.3], atol=0.05)
    sharp = np.bincount(draws(GenerationOptions(temperature=0.1, seed=0), n=300), minlength=4)
    assert sharp[1] > 250


def test_bias_and_unknown_tokens() -> None:
    assert draws(GenerationOptions(logit_bias={0: 10.0, 1: -5.0}), n=1) == [0]
    with pytest.raises(InvalidOptionError, match=r"token 4; .* from 0 to 3"):
        draws(GenerationOptions(logit_bias={4: 1.0}), n=1)


def test_repetition_penalty_reaches_the_prompt_and_what_was_drawn() -> None:
    logits = mx.array([[1.0, 2.0, 1.9, -1.0]])
    options = GenerationOptions(repetition_penalty=2.0, repetition_window=2)
    # 1 is in the prompt's window: 2.0 / 2 < 1.9; then 2 is penalised too, and the window moves past 1 again.
    assert draws(options, logits, n=4, prompt=(0, 3, 1)) == [2, 0, 1, 2]
    negative = mx.array([[-1.0, -1.5]])
    assert draws(options, negative, n=1, prompt=(0,)) == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_window", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("logit_bias", {1: math.inf}),
    ],
)
def test_values_outside_their_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{field} is .* must be "):
        GenerationOptions(**{field: value})  # type: ignore[arg-type]
