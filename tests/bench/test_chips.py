from __future__ import annotations

import pytest

from russet.bench.chips import CHIPS, detect


def test_every_part_is_found_by_the_name_that_macos_gives() -> None:
    for chip in CHIPS:
        assert detect(f"Apple {chip.name}", chip.cores) == chip
        assert detect(f"Apple {chip.name}", None) == chip


def test_smaller_gpus_of_a_part() -> None:
    whole, small = detect("Apple M3 Max", 40), detect("Apple M3 Max", 30)
    assert whole and small and small.name == "M3 Max, 30 cores"
    assert (small.bandwidth, whole.bandwidth) == (300e9, 400e9)
    assert small.prefill_operations == pytest.approx(0.75 * whole.prefill_operations)
    air, m5 = detect("Apple M1", 7), detect("Apple M5", 8)
    assert air and air.bandwidth == 68.25e9
    assert m5 and m5.prefill_operations == pytest.approx(0.8 * 11e12)


@pytest.mark.parametrize("name", [None, "", "AMD EPYC", "Apple M99", "Apple processor", "Apple M1 (Virtual)"])
def test_other_processors_are_none(name: str | None) -> None:
    assert detect(name, 10) is None
