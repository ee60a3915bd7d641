"""Reports of made-up contenders on a made-up clock: what follows from the runs, JSON, CSV, tables, comparisons."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from russet.bench.cold_start import ColdRun
from russet.bench.compare import check_machines, compare_reports, notes, table
from russet.bench.decode import rounds
from russet.bench.environment import environment
from russet.bench.ttft_contenders import BASELINE
from russet.bench.ttft_csv import COLUMNS, write_csv
from russet.bench.ttft_report import (
    Contended,
    LengthRuns,
    ModelResult,
    Predicted,
    TtftReport,
    read_report,
    summaries,
)
from russet.bench.ttft_run import Run, from_measurement
from russet.bench.ttft_tables import markdown
from russet.engine import timing
from russet.engine.errors import BenchmarkDataError

SETTINGS = {
    **{"models": ["tiny"], "prefills": ["exact"], "peers": [], "prompt_lengths": [100], "generate": 9, "repeat": 5},
    **{"delay": 0.0, "cold": False, "dtype": None, "draft": None, "gguf": []},
    "prompt": {"file": None, "sha256": "0" * 64},
}


class Synthetic:
    """A contender whose whole answer passes on a clock that the test owns, by the function that times real ones."""

    engine, prefill, setting, weights_bytes = "russet", "exact", "made up", 1000

    def __init__(self, name: str, clock: list[float], prefill_s: float, token_s: float, noise: Callable[[], float]):
        self.name = name
        self._clock, self._prefill_s, self._token_s, self._noise = clock, prefill_s, token_s, noise

    def encode(self, text: str) -> list[int]:
        self._pass(0.001)
        return [1] * 100

    def writer(self) -> Callable[[int], str]:
        return lambda token: "word"

    def run(self, generate: int) -> Run:
        from russet.bench.base import measure

        return from_measurement(measure("text", lambda _: self._tokens(generate), 1000, self))

    def _tokens(self, generate: int):
        self._pass(self._prefill_s)
        for token in range(generate):
            yield token
            self._pass(self._token_s)

    def _pass(self, seconds: float) -> None:
        self._clock[0] += seconds * self._noise()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    shown = [100.0]
    monkeypatch.setattr(timing, "now", lambda: shown[0])
    return shown


def report_of(contenders: list[Synthetic], repeat: int = 5) -> TtftReport:
    held = LengthRuns(100, None, {each.name: [] for each in contenders})
    for each, run in rounds(contenders, lambda one, n: one.run(n), generate=9, repeat=repeat, what=""):
        held.runs[each.name].append(run)
    stamps = {each.name: Contended(each.engine, each.prefill, each.setting, 1000) for each in contenders}
    model = ModelResult("tiny", "f" * 64, 4, 10, 128, 256, 0.5, stamps, lengths=[held])
    return TtftReport(environment(), dict(SETTINGS), models=[model])


@pytest.fixture
def made(clock: list[float]) -> Callable[..., TtftReport]:
    """A report of exact prefill, and of a mode that takes `slowed` times as long in everything."""

    def make(seed: int, slowed: float = 1.0, base: float = 1.0, repeat: int = 5) -> TtftReport:
        rng = np.random.default_rng(seed)

        def noise() -> float:
            return float(np.exp(rng.normal(0, 0.02)))

        pair = [Synthetic(BASELINE, clock, base, base / 20, noise)]
        pair.append(Synthetic("russet lazyllm:0.5", clock, slowed, slowed / 20, noise))
        return report_of(pair, repeat)

    return make


def through_json(report: TtftReport) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_the_clocks_are_apart(clock: list[float]) -> None:
    run = Synthetic("a", clock, 2.0, 0.5, lambda: 1.0).run(4)
    assert run.ttft_s == pytest.approx(2.001) and run.prefill_s == pytest.approx(2.0)
    assert run.prefill_tps == pytest.approx(50) and run.decode_tps == pytest.approx(2)  # 3 intervals in 1.5 s
    assert run.intervals_s == pytest.approx([0.5, 0.5, 0.5])


def test_a_mode_slowed_by_a_fifth_is_flagged_and_the_same_one_is_not(made: Callable[..., TtftReport]) -> None:
    held = made(1, slowed=1.2).models[0].lengths[0]
    for quantity in ("ttft_s", "prefill_s", "decode_tps"):
        found = held.speed_up("russet lazyllm:0.5", quantity)
        assert found is not None and found.significant
        assert found.ratio == pytest.approx(1 / 1.2, rel=0.03)
        assert found.low and found.high and found.low < 1 / 1.2 < found.high < 1
    same = [made(seed).models[0].lengths[0].speed_up("russet lazyllm:0.5", "ttft_s") for seed in range(20)]
    assert sum(one.significant for one in same if one) <= 2
    assert held.speed_up(BASELINE, "ttft_s") is None


def test_the_same_model_twice_compares_as_1(made: Callable[..., TtftReport]) -> None:
    found = compare_reports(made(2), made(3))
    assert len(found) == 2 * 4
    for one in found:
        assert one.better.low and one.better.high and one.better.low <= 1 <= one.better.high
        assert one.verdict == "no difference shown"


def test_a_slower_version_is_called_slower(made: Callable[..., TtftReport]) -> None:
    before, after = made(4), made(5, base=1.2)
    verdicts = {(one.contender, one.quantity): one.verdict for one in compare_reports(before, after)}
    assert verdicts[BASELINE, "ttft_s"] == verdicts[BASELINE, "decode_tps"] == "slower"
    assert verdicts[BASELINE, "peak_memory_bytes"] == "no difference shown"
    assert {one.verdict for one in compare_reports(after, before) if one.contender == BASELINE} >= {"faster"}
    rows = table(compare_reports(before, after)).rows
    assert next(row[-1] for row in rows if row[2] == BASELINE) == "slower"
    few = compare_reports(made(6, repeat=3), made(7, repeat=3, base=2))
    assert {one.verdict for one in few} == {"too few runs to tell"}


def test_other_machines_are_told_apart(made: Callable[..., TtftReport]) -> None:
    one, other = made(8), made(9)
    check_machines(one, other)
    other.environment["cpu"] = "Apple M9"
    with pytest.raises(BenchmarkDataError, match=r"different machines \(cpu .* and Apple M9\)"):
        check_machines(one, other)
    other.environment["mlx"], other.models[0].sha256 = "9.9", "e" * 64
    text = " ".join(notes(one, other, compare_reports(one, other)))
    assert "Machines differ: cpu" in text and "mlx" in text and "The weights differ: tiny." in text
    other.models[0].name = "another"
    with pytest.raises(BenchmarkDataError, match="no model, prompt length and contender in common"):
        compare_reports(one, other)


def test_json_follows_its_schema_and_comes_back_whole(
    made: Callable[..., TtftReport], validate: Callable[[dict], None], tmp_path: Path
) -> None:
    report = made(10)
    model = report.models[0]
    model.lengths[0].prediction = Predicted("M4", 0.5, 40.0)
    model.cold_start = {"russet": [ColdRun(0.5, 1.0), ColdRun(0.6, 1.25)]}
    model.lengths[0].runs["llama.cpp"] = [Run(None, 0.5, 200.0, None, None)]
    model.contenders["llama.cpp"] = Contended("llama.cpp", "exact", "made up", None)
    model.left_out = [8192]
    raw = through_json(report)
    validate(raw)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(raw))
    again = read_report(file)
    assert again == report and through_json(again) == raw
    shares = raw["models"][0]["results"][0]["contenders"][BASELINE]["roofline_share"]
    assert shares["prefill"] == pytest.approx(0.5, rel=0.1) and shares["decode"] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.pop("environment"), "is not a whole report"),
        (lambda raw: raw["models"][0]["results"][0]["contenders"][BASELINE]["runs"][0].pop("prefill_s"), "not a whole"),
        (lambda raw: raw.update(schema="russet-bench-ttft/0"), "has the schema 'russet-bench-ttft/0'"),
    ],
)
def test_a_damaged_file_is_refused_by_reader_and_schema(
    made: Callable[..., TtftReport],
    validate: Callable[[dict], None],
    tmp_path: Path,
    change: Callable[[dict], Any],
    words: str,
) -> None:
    raw = through_json(made(11))
    change(raw)
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(BenchmarkDataError, match=words):
        read_report(tmp_path / "report.json")
    with pytest.raises(jsonschema.ValidationError):
        validate(raw)


def test_csv_has_a_line_a_run(made: Callable[..., TtftReport]) -> None:
    file = io.StringIO()
    report = made(12, repeat=2)
    write_csv(report, file)
    lines = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert len(lines) == 4 and tuple(lines[0]) == COLUMNS
    assert [(line["contender"], line["run"]) for line in lines] == [
        (name, number) for name in (BASELINE, "russet lazyllm:0.5") for number in "12"
    ]
    assert float(lines[1]["ttft_s"]) == report.models[0].lengths[0].runs[BASELINE][1].ttft_s


def test_tables_name_machine_model_and_doubts(made: Callable[..., TtftReport]) -> None:
    report = made(13, slowed=1.5)
    runs = report.models[0].lengths[0].runs
    lossy = [replace(run, layer_tokens=[100, 40, 40], exact=False, ran="lazyllm:0.5") for run in runs[BASELINE]]
    runs[BASELINE] = [replace(run, layer_tokens=[100, 100, 100]) for run in runs[BASELINE]]
    runs["russet other"] = [replace(run, thermal="heavy", memory_pressure="warn") for run in lossy]
    report.models[0].left_out = [8192]
    text = markdown(report)
    slowed = next(line for line in text.splitlines() if line.startswith("| 100 | russet lazyllm:0.5 | 1."))
    assert "| 0.6" in slowed and "~" not in slowed
    assert "~1.00x" in text and "| 60 |" in text  # the same runs again; 180 of 300 computed
    assert "tokens computed, 100 in layer 0, 40 in layers 1–2." in text
    assert "Thermal pressure was heavy before 5 of 5 runs" in text and "Memory pressure was warn before 5" in text
    assert "8192 tokens were left out" in text and "sha256 ffffffffffff, KV cache 0.2 KiB a token." in text


def test_what_an_engine_does_not_tell_is_left_out() -> None:
    found = summaries([Run(None, 0.5, 200.0, None, None)])
    assert set(found) == {"prefill_s", "prefill_tps"} and summaries([]) == {}
