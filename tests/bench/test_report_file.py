"""Reports that somebody changed, or that were cut: one sentence, whether they are read or shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from russet.bench.report_file import whole_reports
from russet.engine.cli import main
from russet.engine.errors import BenchmarkDataError

REPORT = Path(__file__).parents[2] / "bench" / "results" / "epyc-2-cores.json"


def changed(folder: Path, key: str, value: Any) -> Path:
    """The report with one value of every run of its first prompt length replaced, or left out for None."""
    raw = json.loads(REPORT.read_text())
    for contender in raw["models"][0]["results"][0]["contenders"].values():
        for run in contender["runs"]:
            del run[key]
            if value is not None:
                run[key] = value
    file = folder / "changed.json"
    file.write_text(json.dumps(raw))
    return file


@pytest.mark.parametrize(
    ("key", "value"), [("decode_tps", "fast"), ("decode_tps", 0), ("note", -1), ("thermal", ["x"]), ("ttft_s", None)]
)
@pytest.mark.parametrize("command", ["ttft", "compare"])
def test_a_changed_report_is_one_sentence(tmp_path: Path, command: str, key: str, value: Any) -> None:
    file = str(changed(tmp_path, key, value))
    arguments = ["bench", "ttft", "--from", file] if command == "ttft" else ["bench", "compare", str(REPORT), file]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code in (0, 1)  # a note is none of what is compared
    if command == "ttft" or run.exit_code:
        assert run.exit_code == 1 and "changed.json is not a whole report (" in run.stderr
        assert run.stderr.count("\n") == 1 and len(run.stderr) < 400


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x"), ZeroDivisionError(), TypeError("y" * 1000)])
def test_what_a_damaged_report_leads_to_is_told_of_the_report(error: Exception) -> None:
    with (
        pytest.raises(BenchmarkDataError, match=r"^a or b is not a whole report \(.{2,120}\); measure again\.$"),
        whole_reports(Path("a"), Path("b")),
    ):
        raise error
