"""`russet bench decode --shape`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from russet.bench.shape_configs import SHAPES
from russet.engine.cli import main


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", "decode", *arguments], prog_name="russet")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 256}
    monkeypatch.setitem(
        SHAPES,
        "smollm2-135m",
        {**SHAPES["smollm2-135m"], **small, "num_attention_heads": 2} | {"num_key_value_heads": 1},
    )


@pytest.mark.usefixtures("tiny")
def test_a_shape_beside_mlx_lm() -> None:
    short = ("--prompt-lengths", "12", "--generate", "6", "--repeat", "1", "--dtype", "float32")
    result = bench("--shape", "smollm2-135m", "--bits", "2", "--peer", "mlx-lm", *short, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == {"name": "smollm2-135m-2bit", "sha256": None}
    assert report["contenders"]["mlx-lm"] == "random weights of 2 bits"
    assert report["as_installed"] is None and report["copy_bytes_per_s"] is None
    steps = report["steps"]
    assert all(cost["operations"] > 20 and cost["read_bytes"]["12"] > cost["weights_bytes"] for cost in steps.values())


@pytest.mark.usefixtures("tiny")
def test_the_table_shows_what_a_step_costs() -> None:
    result = bench("--shape", "smollm2-135m", "--prompt-lengths", "12", "--generate", "2", "--repeat", "1")
    assert result.exit_code == 0, result.output
    assert "smollm2-135m-4bit, random weights." in result.stdout
    assert "operations a token" in result.stdout and "of a copy" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "llama-3b", "-m", "smollm2-135m"), "leave out --model"),
        (("--bits", "4"), "--bits belongs to --shape"),
        (("--shape", "gpt-5"), "'gpt-5' is not one of"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2 and words in result.stderr
