"""Scores by prefill mode, from the files of both benchmarks that score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from russet.bench.prefill_report import PrefillReport, RowResult, TaskResult
from russet.bench.prefill_run import RowRun
from russet.bench.quality import Scores
from russet.bench.quality_metrics import Metric
from russet.bench.quality_outcomes import Outcome
from russet.bench.quality_report import QualityReport, Subject
from russet.bench.scores import read_scores
from russet.engine.errors import BenchmarkDataError


def test_a_prefill_report(tmp_path: Path) -> None:
    def run(score: float | None) -> RowRun:
        return RowRun("", score, 1.0, 1.0, [], 0, "exact", True, "", 1)

    rows = [RowResult(str(i), 10, {"exact": run(1.0), "lazyllm:0.5": run(i % 2)}) for i in range(4)]
    random = TaskResult("random:9", "", False, 1, rows=[RowResult("0", 9, {n: run(None) for n in rows[0].runs})])
    tasks = [TaskResult("squad", "answer contained", True, 1, rows=rows), random]
    report = PrefillReport({"name": "m", "sha256": "f"}, {}, {}, ["exact", "lazyllm:0.5"], tasks=tasks)
    (tmp_path / "x.json").write_text(json.dumps(report.to_dict()))
    (found,) = read_scores(tmp_path / "x.json")
    assert (found.name, found.measure, found.sha256, found.percent) == ("squad", "answer contained", "f", True)
    assert {name: score.value for name, score in found.scores.items()} == {"exact": 1.0, "lazyllm:0.5": 0.5}


def test_a_quality_report_has_a_panel_a_figure_and_model(tmp_path: Path) -> None:
    metrics = (Metric("acc", "proportion", "right"), Metric("perplexity", "perplexity", "logprob"))
    report = QualityReport({}, {})
    for model, prefill, right in (("m", "exact", 1.0), ("m", "lazyllm:0.5", 0.0), ("other", "exact", 1.0)):
        scores = Scores("piqa", "as told", metrics)
        scores.rows["1"] = Outcome({"right": right, "logprob": -1.0})
        report.add(Subject(model, prefill, f"hash of {model}"), scores)
    (tmp_path / "x.json").write_text(json.dumps(report.to_dict()))
    found = read_scores(tmp_path / "x.json")
    assert [(each.name, each.measure, each.percent) for each in found] == [
        ("piqa", "acc", True),
        ("piqa", "perplexity", False),
    ]
    assert {each.sha256 for each in found} == {"hash of m"}  # a single strategy has nothing to be drawn beside
    assert {name: score.value for name, score in found[0].scores.items()} == {"exact": 1.0, "lazyllm:0.5": 0.0}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": "something/1"}')
    with pytest.raises(BenchmarkDataError, match="has the schema 'something/1'"):
        read_scores(tmp_path / "x.json")
