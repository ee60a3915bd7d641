from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner, Result

from russet.bench import quality
from russet.bench.model_names import short_names
from russet.bench.quality_report import QualityReport, Subject, read_quality
from russet.engine.cli import main
from russet.engine.errors import BenchmarkDataError

STRATEGY = "lazyllm:0.5"


@pytest.fixture
def models(tiny_folder: Path, tmp_path: Path) -> list[Path]:
    """The tiny model, and one with other weights."""
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = mx.load(str(other / "model.safetensors"))
    weights = {name: array[::-1] if "mlp" in name else array for name, array in weights.items()}
    mx.save_safetensors(str(other / "model.safetensors"), weights, metadata={"format": "mlx"})
    return [tiny_folder, other]


@pytest.fixture
def command(models: list[Path], tmp_path: Path) -> Callable[..., Result]:
    """The command, with rows of two tasks, one of which is too long for the models."""
    words = [{"query": "word " * size, "answer": ["end"]} for size in (5, 20, 30)]
    solutions = [{"goal": "go " * size, "sol1": "a", "sol2": "the b", "label": size % 2} for size in (3, 30, 200, 31)]
    for name, rows in (("lambada", words), ("piqa", solutions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["bench", "quality", *arguments], prog_name="russet")

    return invoke


def test_models_and_strategies_from_data_to_table_and_json(
    command: Callable[..., Result], models: list[Path], tmp_path: Path, validate: Callable[[dict[str, Any]], None]
) -> None:
    arguments = ("-m", ",".join(map(str, models)), "--data", str(tmp_path), "--tasks", "lambada,piqa")
    result = command(*arguments, "--prefill", STRATEGY, "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 0, result.output
    raw = json.loads((tmp_path / "out.json").read_text())
    validate(raw)
    names = [path.name for path in models]
    subjects = [names[0], f"{names[0]} {STRATEGY}", names[1], f"{names[1]} {STRATEGY}"]
    assert [subject["name"] for subject in raw["subjects"]] == subjects
    assert len({subject["sha256"] for subject in raw["subjects"]}) == 2
    lambada, piqa = raw["results"]
    assert [row["id"] for row in piqa["rows"]] == ["piqa/0", "piqa/1", "piqa/3"]
    assert all(summary["skipped"] == 1 for summary in piqa["summary"].values())
    against = {each["subject"]: each["against"] for each in lambada["comparisons"]}
    assert against == {subjects[1]: subjects[0], subjects[2]: subjects[0], subjects[3]: subjects[2]}
    other = next(each for each in lambada["comparisons"] if each["subject"] == subjects[2])
    assert other["metric"] == "acc" and other["kind"] == "difference" and other["rows"] == 3
    values = [row["outcomes"][names[0]]["values"] for row in lambada["rows"]]
    assert set(values[0]) == {"acc", "log_probability"}
    assert f"| {names[0]} {STRATEGY} | 3 |" in result.stdout and "1 rows left out" in result.stdout
    again = command("--from", str(tmp_path / "out.json"))
    assert again.exit_code == 0 and again.stdout == result.stdout
    report = read_quality(tmp_path / "out.json")
    assert report.to_dict() == raw


def test_an_int8_cache_is_compared_with_one_of_16_bits(
    command: Callable[..., Result], models: list[Path], tmp_path: Path, validate: Callable[[dict[str, Any]], None]
) -> None:
    arguments = ("-m", str(models[0]), "--data", str(tmp_path), "--tasks", "piqa,lambada", "--kv-bits", "16,8")
    result = command(*arguments, "--prefill", STRATEGY, "--json")
    assert result.exit_code == 0, result.output
    raw = json.loads(result.stdout)
    validate(raw)
    name = models[0].name
    names = [name, f"{name} {STRATEGY}", f"{name} kv8", f"{name} kv8 {STRATEGY}"]
    assert [subject["name"] for subject in raw["subjects"]] == names
    task = raw["results"][1]
    against = {each["subject"]: each["against"] for each in task["comparisons"]}
    assert against == {f"{name} {STRATEGY}": name, f"{name} kv8": name, f"{name} kv8 {STRATEGY}": f"{name} kv8"}
    plain, rounded = (task["summary"][each]["metrics"]["perplexity"]["value"] for each in (name, f"{name} kv8"))
    assert plain != rounded and rounded == pytest.approx(plain, rel=0.05)


def test_ctrl_c_shows_what_was_finished(
    command: Callable[..., Result], models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = quality.outcomes, iter([True, True, False])

    def outcomes(*arguments):
        if not next(left):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(quality, "outcomes", outcomes)
    result = command("-m", str(models[0]), "--data", str(tmp_path), "--tasks", "lambada,piqa", "--prefill", STRATEGY)
    assert result.exit_code == 130
    assert "**lambada" in result.stdout and "**piqa" not in result.stdout and "Interrupted" in result.stdout


def test_missing_data_stop_all_before_anything_is_computed(
    command: Callable[..., Result], models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "outcomes", lambda *_: pytest.fail("it computed"))
    result = command("-m", str(models[0]), "--data", str(tmp_path), "--tasks", "lambada,squad")
    assert result.exit_code == 1 and "has no squad.jsonl" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Name the folder of the evaluation data with --data"),
        (("--data", ".", "--kv-bits", "16,4"), 2, "--kv-bits is 16,4"),
        (("--data", ".", "--tasks", "nq"), 1, "There is no task 'nq'"),
        (("--data", ".", "--tasks", "piqa,,squad"), 2, "empty name"),
        (("--data", ".", "--prefill", "lazylm"), 1, "did you mean lazyllm"),
        (("--data", ".", "--json", "no/such/x.json"), 1, "cannot be written"),
        (("--from", "nowhere.json"), 1, "nowhere.json cannot be read (No such file or directory)"),
    ],
)
def test_wrong_usage(
    command: Callable[..., Result],
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == code and words in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "has the schema None"),
        ('{"schema": "russet-bench-prefill/1"}', "russet-bench-quality/1' is expected"),
        ('{"schema": "russet-bench-quality/1"}', "is not a whole report"),
    ],
)
def test_what_is_no_report_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BenchmarkDataError, match=words):
        read_quality(tmp_path / "x.json")


def test_models_go_by_the_last_part_of_their_names_where_it_tells_them_apart() -> None:
    assert short_names(["/a/one", "org/two"]) == {"/a/one": "one", "org/two": "two"}
    assert short_names(["/a/q4", "/b/q4", "x"]) == {"/a/q4": "/a/q4", "/b/q4": "/b/q4", "x": "x"}


def test_the_first_subject_has_nothing_to_be_compared_with() -> None:
    report = QualityReport({}, {}, [Subject("a", "exact"), Subject("b", "lazyllm"), Subject("b", "exact")])
    assert [report.against(subject) for subject in report.subjects] == [
        None,
        report.subjects[2],
        report.subjects[0],
    ]
