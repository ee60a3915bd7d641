from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.bench.prompts import book, check_lengths, exact_prompt
from russet.engine.errors import InvalidOptionError


class Words:
    """A token for BOS, a word, or a run of spaces: cutting a text inside a word changes no number of tokens."""

    def encode_prompt(self, text: str) -> list[int]:
        return [0, *(len(part) for part in re.findall(r"\S+|\s+", text))]


class Pairs:
    """Two tokens a line break: not every number of tokens can be reached from every start."""

    def encode_prompt(self, text: str) -> list[int]:
        return [token for letter in text for token in ([1, 2] if letter == "\n" else [3])]


@given(st.integers(2, 300))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_prompt_has_exactly_the_tokens_asked_for(length: int) -> None:
    prompt = exact_prompt(Words(), length)
    assert len(prompt.tokens) == length
    assert Words().encode_prompt(prompt.text) == prompt.tokens
    assert book().startswith(prompt.text)


def test_a_short_text_is_repeated() -> None:
    prompt = exact_prompt(Words(), 12, "one two")
    assert prompt.text.startswith("one two\none two\none")
    assert len(prompt.tokens) == 12


def test_where_no_cut_fits_the_text_starts_later() -> None:
    prompt = exact_prompt(Pairs(), 3, "ab\ncdef")
    assert prompt.text == "cde"


def test_a_length_that_no_text_has_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="exactly 1 tokens"):
        exact_prompt(Pairs(), 1, "\n\n\n\n")


def test_the_book_is_long_enough_for_real_prompts() -> None:
    text = book()
    assert len(text.split()) > 26_000
    assert "White\nRabbit with pink eyes" in text


def test_prompts_that_do_not_fit_are_refused() -> None:
    check_lengths((100, 120), 8, 128)
    with pytest.raises(InvalidOptionError, match=r"A prompt of 121 tokens and 8 generated ones .* context of 128"):
        check_lengths((100, 121), 8, 128)
    with pytest.raises(InvalidOptionError, match="at least 1"):
        check_lengths((0,), 8, 128)
