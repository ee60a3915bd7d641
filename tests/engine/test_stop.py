"""Stop strings: the text before the first is shown, it and what follows are not, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from russet.engine.errors import InvalidOptionError
from russet.engine.stop import StopMatcher

LETTERS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """By trying every end: the first position at which some stop string is complete."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24), max_size=6))
@example(text="aaab", stops=["aab"], cuts=[2, 3])
@example(text="abaabaab", stops=["abaab"], cuts=[])
@example(text="babab", stops=["abb", "bab", "ab"], cuts=[1])
def test_any_split_shows_the_text_before_the_first_stop(text, stops, cuts):
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.feed, chunks)) + matcher.finish()
    assert (shown, matcher.stopped) == expected(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(text, stops):
    matcher = StopMatcher(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        shown += matcher.feed(character)
        if matcher.stopped:
            return
        held = text[:end].removeprefix(shown)
        assert shown + held == text[:end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_across_pieces():
    matcher = StopMatcher(["\nUser:", "END"])
    assert matcher.feed("Hi E") == "Hi "
    assert matcher.feed("N.\nUs") == "EN."
    assert matcher.feed("er: next") == ""
    assert matcher.stopped
    assert matcher.feed("more") == ""
    assert matcher.finish() == ""


def test_without_stop_strings_text_passes():
    matcher = StopMatcher([])
    assert matcher.feed("abc") == "abc"
    assert not matcher.stopped
    assert matcher.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["ok", ""], [3], "END"])
def test_what_is_no_stop_string_is_refused(stops):
    with pytest.raises(InvalidOptionError, match=r"stop"):
        StopMatcher(stops)
