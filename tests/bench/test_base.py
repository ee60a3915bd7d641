from __future__ import annotations

import json

import mlx.core as mx
import pytest

from russet.bench.base import Measurement, measure
from russet.engine import timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only element."""
    shown = [100.0]
    monkeypatch.setattr(timing, "now", lambda: shown[0])
    return shown


def produce(clock: list[float], seconds: list[float]):
    for i, pause in enumerate(seconds):
        clock[0] += pause
        yield i


def test_prefill_ends_with_the_first_token_and_decoding_counts_the_intervals(clock: list[float]) -> None:
    found = measure([7] * 30, lambda _: produce(clock, [2.0, 0.5, 0.5, 1.0]), weights_bytes=0)
    assert found.tokens == [0, 1, 2, 3]
    assert found.timings.prefill_s == 2.0
    assert found.timings.prefill_tps == 15.0
    assert found.timings.decode_tps == 1.5  # three intervals in two seconds
    assert found.timings.token_times_s == [2.0, 2.5, 3.0, 4.0]


def test_a_slow_start_counts_as_prefill(clock: list[float]) -> None:
    def start(_):
        clock[0] += 3.0
        return produce(clock, [1.0])

    found = measure([7], start, weights_bytes=0)
    assert (found.timings.prefill_s, found.timings.decode_tps) == (4.0, 0.0)


def test_memory_is_the_weights_and_what_the_run_adds_to_what_others_hold() -> None:
    others = mx.zeros((1 << 20,), dtype=mx.uint8)
    mx.eval(others)

    def tokens(_):
        rows = mx.ones((3 << 20,), dtype=mx.uint8)
        mx.eval(rows)
        yield 1

    found = measure([7], tokens, weights_bytes=1000)
    assert 3 << 20 <= found.peak_memory_bytes - 1000 < 4 << 20


def test_a_measurement_survives_json(clock: list[float]) -> None:
    found = measure([7] * 3, lambda _: produce(clock, [0.25, 0.125]), weights_bytes=5)
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict()))) == found
