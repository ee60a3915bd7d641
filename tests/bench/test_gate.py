from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import russet
from russet.bench import gate, gate_levels
from russet.bench.gate import Level
from russet.bench.gate_levels import read_levels, record, shortfalls
from russet.bench.prefill_contenders import Contender
from russet.bench.truncate import Truncate
from russet.engine.cli import main
from russet.engine.cli.bench_gate import GATED
from russet.engine.errors import BenchmarkDataError, GateError, PromptTooLongError
from russet.engine.prefill import strategies
from russet.engine.prefill.base import Prefill, Prefilled, PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.lazyllm import LazyLLM
from russet.models import shipped


class Broken:
    """Sees the last three tokens of the prompt and nothing else."""

    name, exact = "lazyllm", False

    def __call__(self, decoder, prompt, cache) -> Prefilled:
        return Truncate(1e-9)(decoder, prompt.__class__(prompt.tokens, tail=3), cache)


@pytest.fixture(scope="module")
def long_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for the gate's prompts, which take a token a byte here."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture
def command(long_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(gate_levels, "FILE", tmp_path / "gate.json")
    monkeypatch.setattr(gate, "NEEDLES", gate.NEEDLES[:2])
    monkeypatch.setattr(gate, "REQUESTS", gate.REQUESTS[:2])
    monkeypatch.setattr(gate, "DOCUMENT_CHARACTERS", 60)

    def invoke(*arguments: str) -> Result:
        line = ["bench", "prefill", "--gate", "-m", str(long_folder), *arguments]
        return CliRunner().invoke(main, line, prog_name="russet")

    return invoke


def test_the_prompts_need_no_data_and_stay_the_same() -> None:
    needles = gate.needle_prompts()
    assert needles == gate.needle_prompts()
    assert {number % 5 for number, _ in gate.NEEDLES} == set(range(5))
    for (number, _), (prompt, code) in zip(gate.NEEDLES, needles, strict=True):
        assert [code in text for text in prompt.documents] == [place == number % 5 for place in range(5)]
        assert code not in prompt.query and code not in prompt.preamble
        assert len(prompt.documents) == 5 and all(220 <= len(text) < 340 for text in prompt.documents)
    texts = [prompt.documents for prompt in (*gate.request_prompts(), *(prompt for prompt, _ in needles))]
    assert len(set(texts)) == len(gate.NEEDLES) + len(gate.REQUESTS)
    assert all(len(documents) == 5 for documents in texts)


def test_a_broken_strategy_shuts_the_gate(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    result = command("--record", "--prefill", "lazyllm:0.9")
    assert result.exit_code == 0, result.output
    assert command().exit_code == 0
    entry = strategies.Strategy(lambda keep=None: Broken(), ("keep",))
    monkeypatch.setitem(strategies.STRATEGIES, "lazyllm", entry)
    result = command("--json")
    assert result.exit_code == 1
    assert "The gate is shut: lazyllm:0.9 has" in result.stderr and "in agreement, under the recorded" in result.stderr
    levels = json.loads(result.stdout)["levels"]
    assert levels["exact"]["measured"]["agreement"] == 1.0
    assert levels["lazyllm:0.9"]["measured"]["agreement"] < levels["lazyllm:0.9"]["least"]["agreement"]


@pytest.mark.parametrize(
    "prefill", [Exact(), LazyLLM(0.2), LazyLLM(0.2, revive=3)], ids=["exact", "lazyllm", "reviving"]
)
def test_a_reply_read_in_one_pass_agrees_with_its_steps(long_folder: Path, prefill: Prefill) -> None:
    model = russet.load(long_folder)
    prompt = PromptTokens([(7 * i) % model.vocab_size for i in range(300)])
    reply = gate._Run(model, prefill, prompt).draw(6)
    assert gate._Run(model, prefill, prompt).agreement(reply) == 1.0
    other = [*reply[:5], (reply[5] + 1) % model.vocab_size]
    assert gate._Run(model, prefill, prompt).agreement(other) == 5 / 6
    assert gate._Run(model, prefill, PromptTokens(prompt.tokens[::-1])).agreement(reply) < 1.0


@pytest.mark.parametrize("keep", ["", "@0.15"])
def test_a_mode_whose_predictor_is_not_here_is_left_out(
    keep: str, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = f"kv-prediction:smollm2-135m-kvp-0.5{keep}"
    assert command("--record", "--prefill", "exact").exit_code == 0
    models = json.loads((tmp_path / "gate.json").read_text())
    for entry in models.values():
        entry["levels"][mode] = entry["levels"]["exact"]
    (tmp_path / "gate.json").write_text(json.dumps(models))
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    result = command()
    assert result.exit_code == 0 and f"Left out: {mode}, since" in result.stderr and mode not in result.stdout
    assert command("--prefill", mode).exit_code == 1


def test_a_model_or_a_mode_without_levels_is_named(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "gate.json").write_text("{}")
    result = command()
    assert result.exit_code == 1 and "has no levels for" in result.stderr
    assert command("--record", "--prefill", "exact").exit_code == 0
    result = command("--prefill", "lazyllm:0.1")
    assert (
        result.exit_code == 1 and "No level is recorded for lazyllm:0.1; there are levels for exact." in result.stderr
    )


def test_a_mode_that_does_not_run_passes_nothing(tmp_path: Path) -> None:
    measured = {"a": Level(1.0, 1.0, "the prompt is short")}
    assert shortfalls(measured, {"a": Level(0.5, 0.5)}) == ["a did not run (the prompt is short)"]
    with pytest.raises(GateError, match="a did not run"):
        record(measured, "0" * 64, "m", tmp_path / "gate.json")
    assert not (tmp_path / "gate.json").exists()


def test_levels_are_recorded_with_a_margin_and_beside_other_models(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    record({"exact": Level(1.0, 1.0)}, "1" * 64, "one", file)
    levels = record({"exact": Level(0.5, 0.02)}, "2" * 64, "two", file)
    assert levels == {"exact": Level(0.3, 0.0)} == read_levels("2" * 64, "two", file)
    assert read_levels("1" * 64, "one", file) == {"exact": Level(0.8, 0.95)}
    assert shortfalls({"exact": Level(0.8, 0.95)}, read_levels("1" * 64, "one", file)) == []
    file.write_text("{")
    with pytest.raises(BenchmarkDataError, match="restore it from the repository"):
        read_levels("1" * 64, "one", file)


def test_recording_one_mode_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    record({"exact": Level(1.0, 1.0), "a": Level(1.0, 0.9)}, "1" * 64, "one", file)
    record({"exact": Level(1.0, 1.0), "b": Level(1.0, 0.8)}, "1" * 64, "one", file, others=True)
    assert list(read_levels("1" * 64, "one", file)) == ["exact", "a", "b"]
    record({"exact": Level(1.0, 1.0)}, "1" * 64, "one", file)
    assert list(read_levels("1" * 64, "one", file)) == ["exact"]
    assert [path.name for path in tmp_path.iterdir()] == ["gate.json"]


def test_levels_of_other_prompts_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gate.json"
    record({"a": Level(1.0, 1.0)}, "1" * 64, "one", file)
    monkeypatch.setattr(gate, "DOCUMENT_CHARACTERS", 300)
    with pytest.raises(GateError, match="levels of one for other prompts"):
        read_levels("1" * 64, "one", file)
    record({"exact": Level(1.0, 1.0)}, "1" * 64, "one", file, others=True)
    assert list(read_levels("1" * 64, "one", file)) == ["exact"]


@pytest.mark.parametrize("entry", [[], {"name": "one", "setup": "x", "levels": {"a": {"needle": 1}}}, {"levels": {}}])
def test_damaged_levels_are_named(entry: object, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text(json.dumps({"1" * 64: entry}))
    with pytest.raises(BenchmarkDataError, match="does not hold levels by model"):
        read_levels("1" * 64, "one", file)


def test_levels_of_the_default_model_are_shipped() -> None:
    models = json.loads(gate_levels.FILE.read_text())
    (levels,) = [found["levels"] for found in models.values() if found["name"] == "smollm2-135m"]
    assert set(GATED) <= set(levels)
    assert levels["exact"]["needle"] >= 0.5 and levels["exact"]["agreement"] >= 0.9


def test_a_short_context_is_told_in_a_sentence(tiny_folder: Path) -> None:
    with pytest.raises(PromptTooLongError, match="the model's context holds"):
        gate.measure(russet.load(tiny_folder), [Contender("exact", Exact())])
