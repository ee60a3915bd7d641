"""What the plots hold; how they look was judged by eye."""

from __future__ import annotations

from pathlib import Path

import pytest

from russet.bench.intervals import Estimate
from russet.bench.scores import TaskScores, read_scores
from russet.bench.ttft_contenders import BASELINE
from russet.bench.ttft_plots import _strip, _waiting, draw_all
from russet.bench.ttft_report import Contended, LengthRuns, ModelResult, TtftReport
from russet.bench.ttft_run import Run
from russet.engine.errors import BenchmarkDataError, StorageError

MACHINE = {"gpu": "Apple M9", "cpu": "Apple M9"}


def answer(ttft: float, gap: float = 0.01, tokens: int = 20) -> Run:
    return Run(ttft, ttft, 1.0, 1 / gap, 10, [ttft + gap * i for i in range(tokens)], [1] * tokens)


@pytest.fixture
def report() -> TtftReport:
    """Two modes at three lengths; one interval of a run is a hundred times as long as the others."""
    names = {BASELINE: "exact", "russet lazyllm:0.5": "lazyllm:0.5"}
    lengths = []
    for length in (128, 512, 2048):
        runs = {name: [answer(length / 100 * (1 + 0.1 * i) * (0.6 if i else 1)) for i in range(4)] for name in names}
        lengths.append(LengthRuns(length, None, runs))
    late = lengths[-1].runs[BASELINE][0]
    late.token_times_s[10:] = [time + 1.0 for time in late.token_times_s[10:]]
    lengths[-1].runs["llama.cpp"] = [Run(None, 5.0, 1.0, None, None)]
    stamps = {name: Contended("russet", prefill, "float32", 1) for name, prefill in names.items()}
    model = ModelResult("tiny/model", None, None, None, 4096, None, 0.1, stamps, lengths=lengths)
    return TtftReport(MACHINE, {}, models=[model])


SCORES = [
    TaskScores(
        "squad", "answer contained", None, {"exact": Estimate(0.5, 0.4, 0.6), "lazyllm:0.5": Estimate(0.4, 0.3, 0.5)}
    )
]


def test_waiting_has_a_line_a_contender_and_a_tick_a_length(report: TtftReport) -> None:
    figure = _waiting(report)
    assert figure is not None
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["128", "512", "2,048"]
    assert panel.get_legend_handles_labels()[1] == [BASELINE, "russet lazyllm:0.5"]
    assert "Apple M9" in figure.get_suptitle()


def test_one_hiccup_does_not_flatten_the_strip_and_is_told(report: TtftReport) -> None:
    figure = _strip(report)
    assert figure is not None
    assert len(figure.axes) == 2 and figure.axes[0].get_ylim()[1] < 50
    assert [text.get_text() for text in figure.axes[0].texts] == ["1 above 14 ms, up to 1010"]
    assert list(figure.axes[0].lines[-1].get_ydata()) == pytest.approx([10.0] * 19)
    assert list(figure.axes[0].lines[-1].get_xdata()) == list(range(2, 21))


def test_files_are_written(report: TtftReport, tmp_path: Path) -> None:
    written = draw_all(report, tmp_path, SCORES)
    assert [file.name for file in written] == ["ttft.png", "tokens.png", "score.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)
    report.models.append(report.models[0])
    assert draw_all(report, tmp_path, SCORES)[-1].name == "score-tiny-model.png"
    with pytest.raises(StorageError, match="cannot be written"):
        draw_all(report, tmp_path / "nowhere", [])


def test_scores_of_other_modes_are_refused(report: TtftReport, tmp_path: Path) -> None:
    others = [TaskScores("squad", "answer contained", None, {"specprefill:0.3": Estimate(0.5, 0.4, 0.6)})]
    with pytest.raises(BenchmarkDataError, match="no scores of tiny/model's weights"):
        draw_all(report, tmp_path, others)


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw_all(TtftReport(MACHINE, {}), tmp_path, []) == []


def test_a_quality_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": "something/1"}')
    with pytest.raises(BenchmarkDataError, match="has the schema"):
        read_scores(tmp_path / "x.json")
