"""`russet bench ttft` and `russet bench compare` as commands, on a tiny model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from russet.bench import memory_estimate, plot_style, ttft_plan
from russet.bench.ttft_contenders import RussetText
from russet.engine.api import Model
from russet.engine.cli import main
from russet.engine.machine import Pressure

SHORT = ("--prompt-lengths", "40,8", "--generate", "6", "--repeat", "2")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], prog_name="russet")


@pytest.fixture
def bench(folder: Path) -> Callable[..., Result]:
    return lambda *arguments: run("ttft", "-m", str(folder), "--dtype", "float32", *arguments)


def test_modes_and_peer_take_turns_and_everything_is_written(
    bench: Callable[..., Result], validate: Callable[[dict], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("russet.bench.ttft.pressure", lambda: Pressure("nominal", "normal"))
    files = {name: str(tmp_path / name) for name in ("out.json", "out.csv", "plots")}
    outputs = ("--json", files["out.json"], "--csv", files["out.csv"], "--plot", files["plots"])
    result = bench(*SHORT, "--prefill", "truncate:0.5", "--peer", "mlx-lm", *outputs)
    assert result.exit_code == 0, result.output
    raw = json.loads(Path(files["out.json"]).read_text())
    validate(raw)
    (model,) = raw["models"]
    assert list(model["contenders"]) == ["russet exact", "russet truncate:0.5", "mlx-lm"]
    assert [found["prompt_tokens"] for found in model["results"]] == [40, 8]
    assert model["kv_bytes_per_token"] == 2 * 2 * 32 * 4
    series = model["results"][0]["contenders"]
    for name, found in series.items():
        assert len(found["runs"]) == 2, name
        for each in found["runs"]:
            assert each["ttft_s"] >= each["prefill_s"] > 0 and len(each["token_times_s"]) == 6
            assert (each["thermal"], each["memory_pressure"]) == ("nominal", "normal")
    ours, theirs = (series[name]["runs"][0] for name in ("russet exact", "mlx-lm"))
    assert ours["tokens"] == theirs["tokens"] and ours["layer_tokens"] == [40, 1] and theirs["layer_tokens"] == []
    assert series["russet truncate:0.5"]["runs"][0]["ran"] == "truncate:0.5"
    assert "| 40 | russet exact |" in result.stdout and "drew the same tokens" in result.stdout
    assert len(list(csv.reader(Path(files["out.csv"]).read_text().splitlines()))) == 1 + 2 * 3 * 2
    assert {file.name for file in Path(files["plots"]).iterdir()} == {"ttft.png", "tokens.png"}


def test_a_report_is_shown_again_and_compared(bench: Callable[..., Result], folder: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for file in files:
        assert bench("--prompt-lengths", "8", "--generate", "2", "--repeat", "4", "--json", file).exit_code == 0
    shown = run("ttft", "--from", files[0])
    assert shown.exit_code == 0 and "| 8 | russet exact |" in shown.stdout
    result = run("compare", *files, "--json", str(tmp_path / "c.json"))
    assert result.exit_code == 0, result.output
    assert "B against A" in result.stdout and "| TTFT s |" in result.stdout
    found = json.loads((tmp_path / "c.json").read_text())
    assert [one["quantity"] for one in found["comparisons"]][:2] == ["ttft_s", "prefill_s"]
    raw = json.loads(Path(files[1]).read_text())
    raw["environment"]["cpu"] = "Apple M9"
    Path(files[1]).write_text(json.dumps(raw))
    refused = run("compare", *files)
    assert refused.exit_code == 1 and "--across-machines" in refused.stderr
    assert run("compare", *files, "--across-machines").exit_code == 0


def test_ctrl_c_keeps_what_was_finished(
    bench: Callable[..., Result], validate: Callable[[dict], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RussetText.run

    def interrupted(self: RussetText, prompt, generate: int):
        if len(prompt.tokens) == 8:
            raise KeyboardInterrupt
        return real(self, prompt, generate)

    monkeypatch.setattr(RussetText, "run", interrupted)
    result = bench(*SHORT, "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 130
    assert "| 40 | russet exact |" in result.stdout and "Interrupted" in result.stdout
    raw = json.loads((tmp_path / "out.json").read_text())
    validate(raw)
    assert raw["interrupted"] and [found["prompt_tokens"] for found in raw["models"][0]["results"]] == [40]


def test_what_does_not_fit_in_memory_is_refused_before_a_model_is_loaded(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttft_plan, "available_bytes", lambda: 20_000)
    monkeypatch.setattr(Model, "__init__", lambda *_: pytest.fail("it was loaded"))
    result = bench(*SHORT)
    assert result.exit_code == 1
    assert "would take about" in result.stderr and "of KV cache) and 20.0 kB are available" in result.stderr


def test_the_estimate_is_near_what_was_measured(bench: Callable[..., Result], folder: Path) -> None:
    needed = memory_estimate.estimate(folder, 46, "float32", peers=1)
    assert needed.cache == 46 * 2 * 2 * 32 * 4 and needed.peers == needed.weights
    result = bench("--prompt-lengths", "40", "--generate", "6", "--repeat", "1", "--json")
    (model,) = json.loads(result.stdout)["models"]
    measured = model["contenders"]["russet exact"]["weights_bytes"]
    assert needed.weights == pytest.approx(measured, rel=0.1)
    peak = model["results"][0]["contenders"]["russet exact"]["runs"][0]["peak_memory_bytes"]
    assert 0.4 < (needed.total - needed.peers) / peak < 2.5


def test_lengths_are_those_that_fit_unless_they_were_asked_for(bench: Callable[..., Result]) -> None:
    result = bench("--generate", "2", "--repeat", "1", "--prompt-lengths", "127")
    assert result.exit_code == 1 and "127 tokens and 2 generated ones do not fit" in result.stderr
    refused = bench("--generate", "2", "--repeat", "1")  # none of the default ones fits in 128 positions
    assert refused.exit_code == 1 and "128 tokens and 2 generated ones do not fit" in refused.stderr


def test_a_prompt_file_is_taken_whole_or_cut(bench: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Twenty bytes of text")
    short = ("--prompt-file", str(file), "--generate", "2", "--repeat", "1", "--json")
    whole, cut = json.loads(bench(*short).stdout), json.loads(bench(*short, "--prompt-lengths", "7,50").stdout)
    assert [found["prompt_tokens"] for found in whole["models"][0]["results"]] == [20]
    assert [found["prompt_tokens"] for found in cut["models"][0]["results"]] == [7, 50]
    assert whole["settings"]["prompt"]["file"] == "prompt.txt"
    file.write_bytes(b"\xff")
    assert "not UTF-8" in bench(*short).stderr
    file.write_text(" \n")
    assert "is empty" in bench(*short).stderr


def test_two_models_one_after_the_other(folder: Path) -> None:
    result = run("ttft", "-m", f"{folder},{folder}/.", *SHORT, "--markdown")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("time to first token, text to text") == 2


def test_the_delay_passes_before_every_run(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("russet.bench.ttft.sleep", slept.append)
    assert bench("--prompt-lengths", "8", "--generate", "2", "--repeat", "2", "--delay", "1.5").exit_code == 0
    assert slept == [1.5] * 3


def test_a_macs_share_of_the_roofline(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("russet.bench.environment.cpu_name", lambda: "Apple M3 Max")
    result = bench(*SHORT, "--json")
    found = json.loads(result.stdout)["models"][0]["results"][0]
    assert found["prediction"]["chip"] == "M3 Max"
    assert 0 < found["contenders"]["russet exact"]["roofline_share"]["decode"] < 1


def test_cold_starts_of_real_processes(bench: Callable[..., Result]) -> None:
    result = bench("--prompt-lengths", "8", "--generate", "2", "--repeat", "1", "--cold", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"][0]["cold_start"]["russet"]["end_s"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--prefill", "lazy"), 1, "There is no prefill strategy 'lazy'"),
        (("--prefill", "superposition:2"), 2, "needs documents"),
        (("--prefill", "exact,,x"), 2, "empty name"),
        (("--peer", "vllm"), 2, "'vllm' is not one of"),
        (("--peer", "llama.cpp"), 2, "name them with --gguf"),
        (("--gguf", "x.gguf"), 2, "--gguf belongs to --peer llama.cpp"),
        (("--peer", "llama.cpp", "--gguf", "nowhere.gguf"), 1, "nowhere.gguf is no file"),
        (("--quality", "x.json"), 2, "--quality belongs to --plot"),
        (("--from", "nowhere.json"), 1, "nowhere.json cannot be read (No such file or directory)"),
        (("--json", "no/such/folder/x.json"), 1, "cannot be written"),
        (("--repeat", "0"), 2, "x>=1"),
    ],
)
def test_what_is_refused(bench: Callable[..., Result], arguments: tuple[str, ...], code: int, words: str) -> None:
    result = bench("--prompt-lengths", "8", "--generate", "2", *arguments)
    assert (result.exit_code, result.stdout) == (code, "") and words in result.stderr


def test_plots_need_matplotlib(bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise plot_style.MissingDependencyError("matplotlib is not installed")

    monkeypatch.setattr(plot_style, "require_matplotlib", refuse)
    result = bench(*SHORT, "--plot", str(tmp_path / "plots"))
    assert result.exit_code == 1 and not (tmp_path / "plots").exists()
