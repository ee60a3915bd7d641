"""The clock, on times made up."""

from __future__ import annotations

import pytest

from russet.engine import timing
from russet.engine.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that the clock will show, one a reading."""
    times: list[float] = []
    monkeypatch.setattr(timing, "now", lambda: times.pop(0))
    return times


def test_text_and_token_have_beginnings_of_their_own(clock: list[float]) -> None:
    # hand-over, tokenised, first token, its text a token later, two more tokens
    clock += [10.0, 10.5, 12.5, 13.0, 13.25, 13.5]
    watch = Stopwatch()
    watch.tokenised()
    watch.token()
    watch.token()
    watch.text()
    watch.token()
    watch.text()
    found = watch.timings(load_s=3.0, prompt_tokens=120, cached_tokens=20)
    assert (found.load_s, found.ttft_s, found.prefill_s, found.prefill_tps) == (3.0, 3.25, 2.0, 50.0)
    assert found.decode_tps == 2 / (13.5 - 12.5)
    assert found.token_times_s == [2.5, 3.0, 3.5]
    assert found.cached_tokens == 20


def test_a_single_token_has_no_decode_rate(clock: list[float]) -> None:
    clock += [0.0, 0.0, 1.0]
    watch = Stopwatch()
    watch.tokenised()
    watch.token()
    found = watch.timings(load_s=0.0, prompt_tokens=5, cached_tokens=0)
    assert (found.decode_tps, found.ttft_s, found.prefill_tps) == (0.0, 1.0, 5.0)
