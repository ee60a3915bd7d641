from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import mlx.core as mx
import pytest

from russet.bench import prefill
from russet.bench.plots import score_plot
from russet.bench.prefill import Plan, fill
from russet.bench.prefill_contenders import Contender, contenders
from russet.bench.prefill_join import joined
from russet.bench.prefill_report import PrefillReport, RowResult, TaskResult, read_report
from russet.bench.prefill_run import RowRun, fits, run
from russet.bench.prefill_summary import summarise
from russet.bench.prefill_tables import notes, tables
from russet.bench.tasks import parse_task
from russet.bench.tasks.base import Example
from russet.bench.truncate import Truncate
from russet.engine.errors import BenchmarkDataError, InvalidOptionError
from russet.engine.prefill.base import Prefilled, PromptTokens, Work
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.importance import LastRow
from russet.engine.prefill.lazyllm import LazyLLM
from russet.engine.prefill.pruning import Staged
from russet.engine.prompt import Prompt


class Recorder:
    """Stands for a decoder and its cache: remembers which tokens were computed."""

    config = None

    def __init__(self) -> None:
        self.seen: list[int] = []

    def arrays(self) -> list:
        return []

    def extend(self, tokens: mx.array, cache: object, logits: int = 1) -> mx.array | None:
        self.seen += tokens[0].tolist()
        return mx.zeros((1, 1, 4)) if logits else None


@pytest.mark.parametrize(
    ("keep", "tail", "kept"),
    [
        (0.5, 1, [0, 1, 7, 8, 9]),
        (0.3, 1, [0, 8, 9]),
        (0.01, 1, [9]),
        (0.4, 4, [6, 7, 8, 9]),
        (0.2, 4, [6, 7, 8, 9]),
        (1.0, 1, list(range(10))),
    ],
)
def test_truncation_drops_the_middle_and_keeps_the_tail(keep: float, tail: int, kept: list[int]) -> None:
    recorder = Recorder()
    found = Truncate(keep)(recorder, PromptTokens(list(range(10)), tail), recorder)
    assert recorder.seen == kept
    assert found.exact == (keep == 1.0)


def test_truncation_needs_a_share() -> None:
    for keep in (0, 1.1, -1):
        with pytest.raises(InvalidOptionError, match="above 0 and at most 1"):
            Truncate(keep)


class Fake:
    """Exact prefill under another name, with what it says of itself made up."""

    exact = False

    def __init__(self, name: str, log: list[str], note: str = "") -> None:
        self.name, self.log, self.note = name, log, note

    def __call__(self, decoder, prompt, cache) -> Prefilled:
        self.log.append(self.name)
        return Prefilled(Exact()(decoder, prompt, cache).logits, False, self.name, Work([6, 3, 1], 2), self.note)


class Words:
    """A task of `rows` rows, of which number `long` does not fit in the context."""

    measure, binary, generate = "made up", True, 3

    def __init__(self, name: str, rows: int, long: int = -1) -> None:
        self.name, self.rows, self.long = name, rows, long
        self.scores = count()

    def examples(self, data, count):
        for i in range(self.rows):
            yield Example(f"{self.name}/{i}", Prompt(query="word " * (200 if i == self.long else i + 2)), ("x",))

    def score(self, output, answers) -> float:
        return float(next(self.scores) % 2)


@pytest.fixture
def report() -> PrefillReport:
    return PrefillReport({"name": "tiny", "sha256": "0" * 64}, {}, {}, ["exact", "a"])


def test_lazyllm_can_rank_as_its_paper_does(tmp_path: Path) -> None:
    _, found, plain = contenders(("lazyllm-last-row:0.3@0.4", "lazyllm-last-row"), tmp_path)
    assert isinstance(found.prefill, LazyLLM) and isinstance(plain.prefill, LazyLLM)
    assert found.prefill.scorer == LastRow() and found.prefill.schedule == Staged({0.4: 0.3})
    assert plain.prefill.schedule == LazyLLM().schedule


def test_names_become_contenders(tmp_path: Path) -> None:
    asked = []

    def parse(name: str, **settings):
        asked.append((name, settings))
        return Fake(name, [])

    names = ("truncate:0.5", "exact", "specprefill:0.3", "superposition:2+cached", "superposition:2", "exact")
    found = contenders(names, tmp_path, "0.25", parse)
    assert [each.name for each in found] == ["exact", *names[:1], *names[2:5]]
    assert [each.primed for each in found] == [False, False, False, True, False]
    assert asked == [
        ("exact", {}),
        ("specprefill:0.3", {"draft": "0.25"}),
        ("superposition:2", {"documents": tmp_path / "superposition-2+cached"}),
        ("superposition:2", {}),
    ]
    for name in ("truncate:x", "truncate", "lazylm:0.5", "lazyllm:0.5+cached"):
        with pytest.raises(InvalidOptionError):
            contenders((name,), tmp_path)


def test_strategies_take_turns_and_tasks_advance_together(tiny_model, report: PrefillReport) -> None:
    log: list[str] = []
    found = [Contender("exact", Fake("e", log)), Contender("a", Fake("a", log), primed=True)]
    plan = Plan((Words("one", 3, long=1), Words("two", 2)), Path(), 10)
    heard: list[str] = []
    fill(report, tiny_model, plan, found, heard.append)
    warm_up, forth, back = "ea", "eaa", "aae"
    assert "".join(log) == warm_up + forth + warm_up + forth + back + back
    assert [entry.partition(",")[0] for entry in heard] == ["one", "two", "one", "two", "one"]
    one, two = report.tasks
    assert [row.id for row in one.rows] == ["one/0", "one/2"] and one.skipped == 1
    assert [list(row.runs) for row in two.rows] == [["exact", "a"]] * 2
    assert [row.runs["exact"].score for row in two.rows] == [0.0, 1.0]


def test_an_interruption_keeps_whole_rows(tiny_model, report: PrefillReport) -> None:
    log: list[str] = []

    class Stubborn(Fake):
        def __call__(self, decoder, prompt, cache):
            if len(log) == 5:
                raise KeyboardInterrupt
            return super().__call__(decoder, prompt, cache)

    found = [Contender("exact", Stubborn("e", log)), Contender("a", Fake("a", log))]
    with pytest.raises(KeyboardInterrupt):
        fill(report, tiny_model, Plan((Words("one", 3),), Path(), 3), found)
    assert [len(task.rows) for task in report.finished] == [1]


def test_missing_data_stop_all_before_a_measurement(tiny_model, report: PrefillReport, tmp_path: Path) -> None:
    log: list[str] = []
    plan = Plan((Words("one", 3), parse_task("squad")), tmp_path / "none", 3)
    with pytest.raises(BenchmarkDataError):
        fill(report, tiny_model, plan, [Contender("exact", Fake("e", log))])
    assert log == []


def test_one_run_goes_past_the_end_of_the_reply_and_keeps_its_text(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny_model.prepare("Hello there")
    reply = tiny_model.generate("Hello there", max_tokens=6).tokens
    whole = run(tiny_model, Exact(), prompt, 6)
    assert whole.text == tiny_model.tokenizer.decode(reply)
    assert whole.prefill_s > 0 and whole.decode_tps > 0 and whole.exact and whole.ran == "exact"
    assert whole.layer_tokens == [len(prompt.tokens)] * 2 + [1]
    monkeypatch.setattr(tiny_model.tokenizer, "eos_ids", frozenset({reply[2]}))
    cut = reply[: reply.index(reply[2])]
    assert run(tiny_model, Exact(), prompt, 6).text == tiny_model.tokenizer.decode(cut)


def test_a_reply_needs_room_too(tiny_model) -> None:
    prompt = PromptTokens([1] * (tiny_model.max_positions - 4))
    assert fits(tiny_model, Exact(), prompt, 4) and not fits(tiny_model, Exact(), prompt, 5)


def made(score: float, prefill_s: float | None, decode: float, layers: list[int], note: str = "") -> RowRun:
    return RowRun("text", score, prefill_s, decode, layers, 1, "a", False, note, 1000)


def test_a_summary_compares_row_by_row() -> None:
    exact = [made(1, 1.0, 10, [10, 1]), made(1, 4.0, 20, [20, 1])]
    ours = [made(0, 0.5, 10, [5, 1]), made(1, 1.0, 10, [10, 1], "too short")]
    found = summarise(ours, exact, binary=True)
    assert (found.score.value, found.difference.value) == (0.5, -0.5)
    assert found.retention is not None and found.retention.value == 0.5
    assert found.speed_up.value == 3.0 and found.prefill_s.value == 0.75
    assert found.decode_ratio is not None and found.decode_ratio.value == 0.75
    assert found.computed == pytest.approx((6 / 11 + 11 / 21) / 2)
    assert found.layer_tokens == [7.5, 1] and found.revived == 1
    assert (found.fell_back, found.note) == (1, "too short")
    single = summarise([made(1, 1.0, 0, [])], [made(1, 1.0, 0, [])], binary=True)
    assert single.decode_ratio is single.computed is single.layer_tokens is None


def test_a_report_survives_json_and_says_what_it_left_out(
    tiny_model, report: PrefillReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Contender("exact", Fake("e", [])), Contender("a", Fake("a", [], "too short."))]
    fill(report, tiny_model, Plan((Words("one", 3, long=0),), Path(), 3), found)
    report.environment = prefill.environment()
    path = tmp_path / "out.json"
    path.write_text(json.dumps(report.to_dict()))
    again = read_report(path)
    assert again == report and again.to_dict() == report.to_dict()
    (table,) = tables(again)
    assert [row[0] for row in table.rows] == ["exact", "a"] and "2 rows" in table.title
    said = "\n".join(notes(again))
    assert "one: 1 rows left out" in said and "one, a: exact prefill in 2 rows (too short)" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has the schema None"),
        ('{"schema": "russet-bench-decode/1"}', "russet-bench-prefill/1' is expected"),
        ('{"schema": "russet-bench-prefill/1"}', "is not a whole report"),
    ],
)
def test_what_is_no_report_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BenchmarkDataError, match=words):
        read_report(tmp_path / "x.json")


def scored(name: str, score: float, prefill_s: float | None, row: str = "one/0", tokens: int = 10) -> TaskResult:
    runs = {"exact": made(1, 2.0 if prefill_s else None, 5, [10, 1]), name: made(score, prefill_s, 5, [5, 1])}
    return TaskResult("one", "words", True, 2, 0, [RowResult(row, tokens, runs)])


def test_scores_of_one_report_are_joined_with_times_of_another(report: PrefillReport) -> None:
    scores = replace(report, strategies=["exact", "a", "b"], environment=prefill.environment())
    scores.tasks = [scored("a", 0, None)]
    scores.tasks[0].rows += [*scored("b", 1, None, "one/1").rows, *scored("a", 1, None, "one/2").rows]
    times = replace(report, strategies=["exact", "a"], tasks=[scored("a", 1, 0.5)], environment=prefill.environment())
    times.environment["cpu"] = "Another CPU"
    whole = joined([scores, times])
    (task,) = whole.tasks
    assert [row.id for row in task.rows] == ["one/0", "one/1", "one/2"] and whole.strategies == ["exact", "a", "b"]
    a, b = task.summary("a"), task.summary("b")
    assert (a.rows, a.score.value, a.prefill_s.value, a.speed_up.value) == (2, 0.5, 0.5, 4.0)
    assert (b.rows, b.score.value, b.speed_up, b.prefill_s) == (1, 1.0, None, None)
    (table,) = tables(whole)
    assert table.header[1] == "rows" and [row[:2] for row in table.rows] == [("exact", "3"), ("a", "2"), ("b", "1")]
    assert "Another CPU" in "\n".join(notes(whole))
    again = PrefillReport.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert again == whole and joined([again, times]).tasks == whole.tasks


def test_reports_of_other_models_or_other_prompts_are_not_joined(report: PrefillReport) -> None:
    one = replace(report, tasks=[scored("a", 1, None)])
    with pytest.raises(BenchmarkDataError, match="whose weights differ"):
        joined([one, replace(one, model={"name": "other", "sha256": "1"})])
    with pytest.raises(BenchmarkDataError, match="10 tokens in one report and 11"):
        joined([one, replace(one, tasks=[scored("a", 1, 1.0, tokens=11)])])


def test_scores_without_times_are_drawn_against_the_work_saved(report: PrefillReport, tmp_path: Path) -> None:
    untimed = replace(
        report, tasks=[scored("a", 1, None)], strategies=["exact", "a"], environment=prefill.environment()
    )
    score_plot(untimed, tmp_path / "work.svg")
    assert "exact prefill's work" in (tmp_path / "work.svg").read_text()
    score_plot(replace(untimed, tasks=[scored("a", 1, 0.5)]), tmp_path / "time.svg")
    assert "prefill speed-up" in (tmp_path / "time.svg").read_text()
