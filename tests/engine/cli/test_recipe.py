"""`russet recipe` on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from russet.converters.recipes import RECIPES, recipe_class
from russet.converters.recipes.share_kv import ShareOptions
from russet.engine.cli import main
from russet.engine.cli.recipe import NAMES, Tokens
from russet.engine.cli.training import BarListener, LineListener


@pytest.fixture
def folders(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model that guesses evenly, and text."""
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    data.mkdir()
    for file in tiny_folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = mx.load(str(tiny_folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 0.1
    mx.save_safetensors(str(source / "model.safetensors"), weights, metadata={"format": "mlx"})
    np.random.default_rng(0).integers(0, 250, 500).astype("<u2").tofile(data / "a.bin")
    return source, data


def run(name: str, source: Path, dst: Path, data: Path, *more: str) -> tuple[int, str]:
    size = ["--tokens", "0.2k", "--batch", "4", "--length", "16"]
    done = CliRunner().invoke(main, ["recipe", name, str(source), str(dst), "--data", str(data), *size, *more])
    return done.exit_code, done.output


def test_a_recipe_is_run_and_reported(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, data = folders
    code, output = run("share_kv", source, tmp_path / "dst", data, "-o", "share=0.67", "--json")
    assert code == 0, output
    report = json.loads(output.splitlines()[-1])
    assert report["steps"] == 4 and report["options"] == {**asdict(ShareOptions()), "share": 0.67}
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["russet"] == {"kv_source": [None, 0, 0]}


def test_the_card_has_the_command_that_makes_it_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("share_kv", *(folders[0], tmp_path / "dst", folders[1]), "-o", "share=0.67", "--hidden", "0.25")[0] == 0
    card = (tmp_path / "dst" / "README.md").read_text()
    words = card.partition("```sh\n")[2].partition("```")[0].replace("\\\n", " ").replace(" DST ", " again ").split()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.output
    files = [tmp_path / name / "model.safetensors" for name in ("dst", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_log_hears_of_the_beginning_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    listener = LineListener()
    listener.task("Measuring the source")
    listener.training(50, 10, 64)
    for step in range(11, 51):
        listener.step(step, 64, {"loss": 5.0 - step / 100, "kl": 0.5})
    listener.finish()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "russet: training, step 10 of 50"
    assert last.startswith("russet: step 50 of 50: loss 4.5, kl 0.5; ") and last.endswith(" tokens/s")


def test_a_terminal_sees_a_bar_that_starts_where_the_run_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    listener = BarListener()
    listener.task("Measuring the source")
    listener.training(50, 10, 64)
    assert listener._bar is not None
    (task,) = listener._bar.tasks
    assert (task.total, task.completed) == (50, 10)
    listener.step(11, 64, {"loss": 4.5})
    assert task.completed == 11 and task.description.startswith("loss 4.5000, ")
    listener.finish()
    assert listener._bar is None
    shown = capsys.readouterr()
    assert "Measuring the source" in shown.err and "/50" in shown.err and shown.out == ""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["-o", "colour=red"], "share_kv has no setting 'colour'; it has share, slots, blend, trained."),
        (["-o", "share=red"], "share is 'red'; float is expected."),
        (["-o", "share=0.1"], "A share of 0.1 leaves 0 of 3 layers"),
        (["--teacher", "smollm3"], "There is no model smollm3"),
    ],
)
def test_a_wrong_setting_is_told(folders: tuple[Path, Path], tmp_path: Path, more: list[str], told: str) -> None:
    source, data = folders
    code, output = run("share_kv", source, tmp_path / "dst", data, *more)
    assert code == 1 and told in output
    assert not (tmp_path / "dst").exists() and not (tmp_path / "dst.run").exists()


@pytest.mark.parametrize(("text", "tokens"), [("500k", 500_000), ("4K", 4_000), ("1.5m", 1_500_000), ("2B", 2 * 10**9)])
def test_counts_of_tokens_are_read_in_either_case(text: str, tokens: int) -> None:
    assert Tokens().convert(text, None, None) == tokens


@pytest.mark.parametrize("tokens", ["many", "0", "-3k", "4kB", "M"])
def test_tokens_are_a_number(folders: tuple[Path, Path], tmp_path: Path, tokens: str) -> None:
    source, data = folders
    assert run("control", source, tmp_path / "dst", data, "--tokens", tokens)[0] == 2


def test_every_recipe_can_be_named() -> None:
    assert set(NAMES) == set(RECIPES)


def test_help_names_every_setting() -> None:
    """Those in brackets behind a recipe are its own; combined has those of three others besides."""
    text = " ".join(CliRunner().invoke(main, ["recipe", "--help"]).output.split())
    named = {name: text.partition(f" {name} ")[2].partition("(")[2].partition(")")[0] for name in NAMES}
    own = {name: {field.name for field in fields(recipe_class(name).options_type)} for name in NAMES}
    others = own["relufy"] | own["share_kv"] | own["qat2"]
    for name in set(NAMES) - {"combined", "control"}:
        assert set(named[name].split(", ")) == own[name]
    assert named["combined"] == "bits, and their settings but stage, shift and trained"
    assert own["combined"] == {"bits"} | others - {"stage", "shift", "trained"} and not own["control"]
