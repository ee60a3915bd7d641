from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from russet.bench.base import Measurement
from russet.bench.decode import run_decode
from russet.bench.environment import environment
from russet.bench.prompts import Prompt
from russet.bench.report import SCHEMA, Report
from russet.bench.tables import markdown, show

MACHINE = {
    **environment(),
    "cpu": "Some CPU",
    "cores": 2,
    "memory_bytes": 24e9,
    "gpu": "Some GPU",
    "gpu_cores": None,
    "gpu_memory_bytes": 80e9,
    "git": "0123456789ab",
}


@pytest.fixture
def report(fake) -> Report:
    """Russet twice as fast in prefill: 1, 2 and 3 s for 100 tokens, against 2, 4 and 6."""
    contenders = [fake("russet", [], [9.0, 1.0, 2.0, 3.0]), fake("mlx-lm", [], [9.0, 2.0, 4.0, 6.0])]
    settings = {"generate": 3, "repeat": 3}
    made = Report({"name": "tiny", "sha256": "f" * 64}, MACHINE, settings, {c.name: c.setting for c in contenders})
    run_decode(contenders, [Prompt("", [1] * 100)], generate=3, repeat=3, results=made.lengths)
    return made


def through_json(report: Report) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_json_holds_every_raw_value_and_what_follows_from_it(report: Report) -> None:
    found = through_json(report)
    assert found["schema"] == SCHEMA and found["environment"] == MACHINE and not found["interrupted"]
    (result,) = found["results"]
    runs = [Measurement.from_dict(run) for run in result["runs"]["russet"]]
    assert runs == report.lengths[0].runs["russet"]
    assert result["summary"]["mlx-lm"]["prefill_s"] == {
        "median": 4.0,
        "mean": 4.0,
        "stdev": 2.0,
        "p95": pytest.approx(5.8),
        "min": 2.0,
        "max": 6.0,
        "values": [2.0, 4.0, 6.0],
    }
    assert result["ratios"]["mlx-lm"] == {
        "prefill": {"median": 2.0, "lowest": 2.0, "highest": 2.0},
        "decode": {"median": 1.0, "lowest": 1.0, "highest": 1.0},
        "same_tokens": True,
        "first_difference": None,
    }
    assert found["as_installed"] is None


def test_different_tokens_are_told_with_their_place(report: Report) -> None:
    report.lengths[0].runs["mlx-lm"][0].tokens[2] = 99
    assert through_json(report)["results"][0]["ratios"]["mlx-lm"]["first_difference"] == 2
    assert "up to 2" in markdown(report)


def test_a_single_token_has_no_decode_rate(fake) -> None:
    contenders = [fake("russet", [], [1.0, 1.0]), fake("mlx-lm", [], [1.0, 1.0])]
    made = Report(
        {"name": "tiny", "sha256": "f" * 64}, MACHINE, {"generate": 1, "repeat": 1}, {"russet": "", "mlx-lm": ""}
    )
    run_decode(contenders, [Prompt("", [1] * 10)], generate=1, repeat=1, results=made.lengths)
    assert "decode" not in through_json(made)["results"][0]["ratios"]["mlx-lm"]
    assert "| 10 | russet |" in markdown(made)


def test_markdown_names_the_machine_and_keeps_its_columns(report: Report) -> None:
    report.as_installed, report.as_installed_prompt_tokens = report.lengths[0].runs["mlx-lm"][0], 100
    text = markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 4
    assert (
        "| 100 | russet | 2.000 (1.000–3.000) | 50.0 (33.3–100.0) | 2.0 (2.0–2.0) | 1.0 MB | 2.00x (2.00–2.00) |"
        in text
    )
    assert "Some GPU with 80.0 GB, Some CPU, 2 cores, 24.0 GB memory" in text and "0123456789ab" in text
    assert "mlx-lm as installed" in text and "prefill 50.0 tok/s" in text


def test_a_length_that_was_not_finished_is_left_out_and_the_interruption_told(report: Report) -> None:
    report.interrupted = True
    report.lengths[0].runs["mlx-lm"].clear()
    assert through_json(report)["results"] == [] and through_json(report)["interrupted"]
    assert markdown(report).splitlines()[-1] == "- Interrupted: what was finished is shown."


def test_a_terminal_gets_a_drawn_table(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, terminal=True)
    out = capsys.readouterr().out
    assert "┃" in out and "| --- |" not in out


def test_without_rich_a_terminal_gets_markdown(
    report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    show(report, terminal=True)
    assert capsys.readouterr().out.rstrip("\n") == markdown(report)
