"""The learning rate's course."""

from __future__ import annotations

import pytest

from russet.converters.recipes.trainer import Settings


def test_the_rate_rises_over_the_warmup_and_falls_straight_to_zero():
    settings = Settings(tokens=103 * 64, batch=2, length=32, rate=1e-3, warmup=3 / 103)
    rates = [settings.schedule.at(step) for step in range(settings.steps)]
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert rates[53] == pytest.approx(0.5e-3)
    assert rates[-1] == pytest.approx(1e-5)
