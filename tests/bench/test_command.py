from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from russet.bench.ours import Russet
from russet.engine.cli import main

SHORT = ("--prompt-lengths", "40,8", "--generate", "12", "--repeat", "2", "--no-as-installed")


@pytest.fixture
def bench(folder: Path) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["bench", "decode", "-m", str(folder), *arguments], prog_name="russet")

    return invoke


def test_a_real_run_beside_mlx_lm(bench: Callable[..., Result]) -> None:
    result = bench("--peer", "mlx-lm", "--peer", "mlx-lm", *SHORT, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report["contenders"]) == ["russet", "mlx-lm"]
    assert [found["prompt_tokens"] for found in report["results"]] == [40, 8]
    for found in report["results"]:
        assert {name: len(runs) for name, runs in found["runs"].items()} == {"russet": 2, "mlx-lm": 2}
        assert all(len(run["tokens"]) == 12 for runs in found["runs"].values() for run in runs)
        assert found["ratios"]["mlx-lm"]["same_tokens"]
        assert found["summary"]["russet"]["peak_memory_bytes"]["median"] > 50_000


def test_json_goes_to_a_file_and_the_table_to_standard_output(bench: Callable[..., Result], tmp_path: Path) -> None:
    result = bench(*SHORT, "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 0, result.output
    assert "| 40 | russet |" in result.stdout and "peer" not in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["prompt_lengths"] == [40, 8]


def test_a_file_that_cannot_be_written_is_refused_before_any_work(bench: Callable[..., Result], tmp_path: Path) -> None:
    result = bench(*SHORT, "--json", str(tmp_path / "no" / "out.json"))
    assert (result.exit_code, result.stdout) == (1, "") and "cannot be written" in result.stderr


def test_a_missing_peer_is_named(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlx_lm" else real(name, *a))
    result = bench("--peer", "mlx-lm", *SHORT)
    assert result.exit_code == 1
    assert "install russet[mlx-lm]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peer", "vllm"), "'vllm' is not 'mlx-lm'"),
        (("--prompt-lengths", "12,x"), "'12,x' is not a list of whole numbers"),
        (("--prompt-lengths", "0"), "whole numbers above 0"),
        (("--repeat", "0"), "x>=1"),
    ],
)
def test_wrong_usage(bench: Callable[..., Result], arguments: tuple[str, ...], words: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2 and words in result.stderr


def test_a_prompt_over_the_context_is_refused_before_any_run(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Russet, "run", lambda *_: pytest.fail("it ran"))
    result = bench("--prompt-lengths", "100,117", "--generate", "12")
    assert result.exit_code == 1
    assert "117 tokens and 12 generated ones do not fit in the model's context of 128" in result.stderr


def test_ctrl_c_shows_what_was_finished(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Russet.run

    def run(self: Russet, tokens: list[int], generate: int):
        if len(tokens) == 8:
            raise KeyboardInterrupt
        return real(self, tokens, generate)

    monkeypatch.setattr(Russet, "run", run)
    result = bench(*SHORT)
    assert result.exit_code == 130
    assert "| 40 | russet |" in result.stdout and "| 8 |" not in result.stdout
    assert "Interrupted" in result.stdout
