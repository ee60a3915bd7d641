from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from russet.bench import prefill as bench
from russet.bench.plots import family
from russet.engine.cli import main


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path) -> Callable[..., Result]:
    """The command on the tiny model, with four SQuAD rows of some 250 tokens and one that is too long."""
    rows = [
        {"query": f"Title: T\nBackground: {'word ' * size}\nQuestion: Who is {size}?\nAnswer:", "answers": ["x"]}
        for size in (20, 25, 99, 30, 35)
    ]
    (tmp_path / "squad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["bench", "prefill", "-m", str(tiny_folder), *arguments], prog_name="russet")

    return invoke


STRATEGIES = "lazyllm:0.5@0.3,superposition:1+cached,truncate:0.5"


def test_a_real_run_from_data_to_json_table_and_plot(command: Callable[..., Result], tmp_path: Path) -> None:
    data = ("--data", str(tmp_path), "--tasks", "squad", "--limit", "3", "--prefill", STRATEGIES)
    result = command(*data, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["strategies"] == ["exact", *STRATEGIES.split(",")]
    (task,) = report["results"]
    assert [row["id"] for row in task["rows"]] == ["squad/0", "squad/1"] and task["skipped"] == 1
    assert task["summary"]["exact"]["speed_up"]["value"] == 1.0
    assert task["summary"]["truncate:0.5"]["computed"] == pytest.approx(0.5, abs=0.02)
    assert 0 < task["summary"]["lazyllm:0.5@0.3"]["computed"] < 1
    first = task["rows"][0]["runs"]
    assert [first[name]["ran"] for name in report["strategies"]] == [
        *("exact", "lazyllm", "superposition", "truncate:0.5"),
    ]
    assert "| exact |" in result.stdout and "1 rows left out" in result.stdout
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    again = command("--from", str(tmp_path / "out.json"), "--plot", str(tmp_path / "again.svg"))
    assert again.exit_code == 0 and again.stdout == result.stdout
    assert "squad (n = 2)" in (tmp_path / "again.svg").read_text()


def test_ctrl_c_shows_what_was_finished(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = bench.run, iter([True] * 4 + [False] * 9)

    def run(*arguments):
        if not next(left):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(bench, "run", run)
    result = command("--data", str(tmp_path), "--tasks", "squad", "--prefill", "truncate:0.5")
    assert result.exit_code == 130
    assert "squad: answer contained, 1 rows" in result.stdout and "Interrupted" in result.stdout


def test_ctrl_c_before_the_first_result_says_so(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", run)
    written = tmp_path / "rows.json"
    result = command("--data", str(tmp_path), "--tasks", "squad", "--json", str(written))
    assert result.exit_code == 130 and result.stdout == "" and not written.exists()
    assert "Interrupted before the first result" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Name the folder of the evaluation data with --data"),
        (("--record",), 2, "--record belongs to --gate"),
        (("--gate", "--plot", "x.png"), 2, "--gate neither draws nor reads"),
        (("--data", ".", "--tasks", "nq"), 1, "There is no task 'nq'"),
        (("--data", ".", "--tasks", "nq:5,,squad"), 2, "empty name"),
        (("--data", ".", "--prefill", "lazylm"), 1, "did you mean lazyllm"),
        (("--data", "nowhere"), 1, "nowhere is not a folder"),
        (("--data", ".", "--json", "no/such/x.json"), 1, "cannot be written"),
        (("--data", ".", "--plot", "no/such/x.png"), 1, "cannot be written"),
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


def test_a_missing_matplotlib_is_named_before_any_work(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def importing(name: str, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.setattr(bench, "fill", lambda *_: pytest.fail("it measured"))
    result = command("--data", str(tmp_path), "--plot", str(tmp_path / "x.png"))
    assert result.exit_code == 1 and "install russet[plot]" in result.stderr


def test_settings_of_one_strategy_are_one_line_of_the_plot() -> None:
    names = ("lazyllm:0.5", "lazyllm", "superposition:2", "superposition:4+cached", "kv-prediction:a/b")
    assert [family(name) for name in names] == [
        *("lazyllm", "lazyllm", "superposition", "superposition+cached", "kv-prediction"),
    ]
