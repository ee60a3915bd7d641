"""`russet bench prefill --shape`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from russet.bench import prefill as bench
from russet.bench.shape_configs import SHAPES
from russet.engine.cli import main

SHORT = ("--shape", "smollm2-135m", "--bits", "16", "--prompt-lengths", "256,32", "--generate", "3", "--repeat", "2")
STRATEGIES = ("exact", "lazyllm:0.45", "specprefill:0.3", "superposition:2")


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", "prefill", *arguments], prog_name="russet")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128, "vocab_size": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setitem(SHAPES, "smollm2-135m", {**SHAPES["smollm2-135m"], **small, **heads})


@pytest.mark.usefixtures("tiny")
def test_random_prompts_are_timed_and_not_scored() -> None:
    result = command(*SHORT, "--prefill", ",".join(STRATEGIES), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == {"name": "smollm2-135m-16bit", "sha256": None}
    assert report["settings"]["prompt_lengths"] == [256, 32] and report["strategies"] == list(STRATEGIES)
    long, short = report["results"]
    assert [long["task"], short["task"]] == ["random:256", "random:32"] and len(long["rows"]) == 2
    for name, found in long["summary"].items():
        assert found["score"] is found["difference"] is found["retention"] is None
        assert found["prefill_s"]["value"] > 0 and found["decode_ratio"]["value"] > 0 and found["rows"] == 2
        assert found["fell_back"] == (2 if name == "superposition:2" else 0)
    exact, lazy = (long["summary"][name]["layer_tokens"] for name in ("exact", "lazyllm:0.45"))
    assert exact == [256, 256, 256, 1] and lazy[0] == 256 > lazy[1] >= lazy[2] > lazy[3] == 1
    assert 0 < long["summary"]["specprefill:0.3"]["computed"] < 0.6
    # Too short to leave anything out: exact prefill runs, and says so.
    assert [found["fell_back"] for found in short["summary"].values()] == [0, 2, 2, 2]
    runs = short["rows"][0]["runs"]
    assert {run["ran"] for run in runs.values()} == {"exact"} and "so prefill was exact" in runs["lazyllm:0.45"]["note"]
    assert all(run["score"] is None and run["text"] == "" for run in runs.values())


@pytest.mark.usefixtures("tiny")
def test_the_table_has_no_scores_and_the_notes_have_the_layers(tmp_path) -> None:
    file = tmp_path / "out.json"
    result = command(*SHORT, "--prefill", "truncate:0.5,superposition:2", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "**random:256: 2 runs, no scores**" in result.stdout and "score %" not in result.stdout
    assert "smollm2-135m-16bit, random weights." in result.stdout
    assert "random:256, exact: tokens computed, 256 in layers 0–2, 1 in layer 3." in result.stdout
    assert "random:256, superposition:2: exact prefill in 2 rows (Superposition does not apply" in result.stdout
    again = command("--from", str(file))
    assert again.exit_code == 0 and again.stdout == result.stdout
    drawn = command("--from", str(file), "--plot", str(tmp_path / "out.png"))
    assert drawn.exit_code == 1 and "has no scores to draw" in drawn.stderr


@pytest.mark.usefixtures("tiny")
def test_strategies_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    real, order = bench.run, []

    def run(model, prefill, prompt, generate):
        order.append((prefill.name, generate))
        return real(model, prefill, prompt, generate)

    monkeypatch.setattr(bench, "run", run)
    short = ("--shape", "smollm2-135m", "--prompt-lengths", "32", "--repeat", "2", "--generate", "5")
    assert command(*short, "--prefill", "truncate:0.5").exit_code == 0
    warm_up, forth = [("exact", 4), ("truncate:0.5", 4)], [("exact", 5), ("truncate:0.5", 5)]
    assert order == [*warm_up, *forth, *reversed(forth)]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--shape", "llama-3b", "-m", "smollm2-135m"), 2, "leave out --model"),
        (("--shape", "llama-3b", "--tasks", "squad"), 2, "leave out --tasks"),
        (("--shape", "llama-3b", "--plot", "x.png"), 2, "leave out --plot"),
        (("--shape", "llama-3b", "--gate"), 2, "leave out --gate"),
        (("--gate", "--bits", "4"), 2, "--bits belongs to --shape"),
        (("--data", ".", "--repeat", "3"), 2, "--repeat belongs to --shape"),
        (("--shape", "llama-3b", "--prefill", "lazylm"), 1, "did you mean lazyllm"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = command(*arguments)
    assert result.exit_code == code and words in result.stderr and result.stdout == ""


@pytest.mark.usefixtures("tiny")
def test_a_prompt_has_to_fit() -> None:
    result = command("--shape", "smollm2-135m", "--prompt-lengths", "32768")
    assert result.exit_code == 1 and "choose shorter ones" in result.stderr
