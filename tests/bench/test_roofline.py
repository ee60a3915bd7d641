"""The roofline model: its parts, and its error on published figures."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import russet
from russet.bench import drawing, roofline, roofline_check, roofline_overview
from russet.bench.chips import CHIPS, Chip
from russet.bench.roofline import LAUNCH_S, READ_SHARE, predict, shape_workload, step_seconds
from russet.engine.cli import main
from russet.engine.errors import UnsupportedModelError

CHIP = Chip("made up", 100e9, 10, 1e9)
M4 = next(chip for chip in CHIPS if chip.name == "M4")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", "roofline", *arguments], prog_name="russet")


def test_a_step_takes_its_bytes_or_its_arithmetic_then_cache_and_launches() -> None:
    # 10 cores issue 1.28e12 instructions a second; 0.88 of 100 GB/s are read.
    read = step_seconds(CHIP, 10**9, 10**9, 4.0, 88 * 10**6, 100)
    assert read == pytest.approx({"weights": 1 / (100 * READ_SHARE), "cache": 1e-3, "launches": 100 * LAUNCH_S})
    computed = step_seconds(CHIP, 10**10, 10**9, 4.0, 0, 0)
    assert computed["arithmetic"] == pytest.approx(4e10 / 1.28e12)


def test_predictions_of_a_shape() -> None:
    work = shape_workload("llama-2-7b", 4)
    assert work.launches == 162
    assert work.weight_bytes == pytest.approx(6_607_077_376 * 4.5 / 8)
    short, long = predict(work, M4, 512), predict(work, M4, 4096)
    assert short.bound == "weights" and short.decode_tps > long.decode_tps and short.ttft_s < long.ttft_s
    expected = work.weight_bytes / (0.88 * 120e9) + 512 * 32 * 2 * 4096 * 2 / (0.88 * 120e9) + 162 * 5.2e-6
    assert 1 / short.decode_tps == pytest.approx(expected)
    assert predict(shape_workload("smollm2-135m", 4), CHIPS[11], 64).bound == "launches"
    assert predict(shape_workload("llama-3b", 2), Chip("slow", 400e9, 10, 1e9), 64).bound == "arithmetic"


def test_shared_keys_and_values_save_prefill_and_not_decoding() -> None:
    owned, shared = (predict(shape_workload(name, 4), M4, 4096) for name in ("llama-3b", "afm-3b"))
    assert shared.ttft_s < 0.7 * owned.ttft_s
    assert shared.decode_tps == pytest.approx(owned.decode_tps, rel=0.1)


def test_the_model_fits_published_figures() -> None:
    decode, prefill = roofline_check.decode_checks(), roofline_check.prefill_checks()
    assert (len(decode), len(prefill)) == (14, 10)
    errors = {one.chip: one.error for one in decode}
    assert statistics.median(map(abs, errors.values())) < 0.04 and max(map(abs, errors.values())) < 0.18
    # One number is fitted to these, so their middle is no news, and their spread is.
    fitted = [one.error for one in prefill]
    assert abs(statistics.median(fitted)) < 0.03 and max(map(abs, fitted)) < 0.15


def test_an_error_is_the_distance_to_the_nearer_end_of_a_range() -> None:
    inside, fast, slow = (roofline_check.Checked("M1", (10.0, 12.0), value) for value in (11.0, 15.0, 8.0))
    assert (inside.error, fast.error, slow.error) == pytest.approx((0.0, 0.25, -0.2))


def test_the_documentation_shows_check_and_overview_as_they_are() -> None:
    text = (Path(russet.__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = [line.replace(" ", "") for line in text.splitlines()]
    tables = [roofline_check.table(), roofline_overview.table()]
    rows = [row for table in tables for row in drawing.markdown([table], []).splitlines()[2:]]
    missing = [row for row in rows if row.startswith("| M") and row.replace(" ", "") not in shown]
    assert not missing


def test_the_command_labels_everything_as_predicted(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = run("--shape", "afm-3b", "--bits", "2", "--contexts", "512", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "Predicted, not measured: afm-3b of 2 bits" in result.stdout and "predicted decode tok/s" in result.stdout
    found = json.loads(file.read_text())
    assert found["predicted"] is True and len(found["predictions"]) == len(CHIPS)
    assert all(one["context"] == 512 and one["decode_tps"] > 1 for one in found["predictions"])


def test_a_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    from russet.bench.shape_configs import SHAPES

    config = {**SHAPES["smollm2-135m"], "quantization": {"bits": 8, "group_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    work = roofline.folder_workload("mine", tmp_path)
    assert (work.bits, work.group, work.launches) == (8, 32, 152)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization": {"bits": 3}}))
    with pytest.raises(UnsupportedModelError, match="mine has weights of 3 bits"):
        roofline.folder_workload("mine", tmp_path)


def test_the_check_is_a_table_of_its_own() -> None:
    result = run("--check")
    assert result.exit_code == 0 and "| M4 Max | 886 |" in result.stdout


def test_the_overview_has_a_row_a_part_of_predictions() -> None:
    result = run("--overview")
    rows = [line for line in result.stdout.splitlines() if line.startswith("| M")]
    assert result.exit_code == 0 and len(rows) == len(CHIPS) and "Predicted, not measured" in result.stdout
    found = predict(shape_workload("llama-2-7b", 4), M4, roofline_overview.PROMPT)
    assert next(row for row in rows if row.startswith("| M4 |")).endswith(
        f"| {found.ttft_s:.2g} | {found.decode_tps:.0f} |"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "afm-3b", "--check"), "leave all but one out"),
        (("-m", "x", "--shape", "afm-3b"), "leave all but one out"),
        (("--overview", "--check"), "leave all but one out"),
        (("--bits", "4"), "--bits belongs to --shape"),
        (("--contexts", "x"), "'x' is not a list of whole numbers"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr
