"""`russet sample`: a folder that recipes train on, in Python and from the command line."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from russet.converters.recipes.corpus import Corpus
from russet.converters.texts import sample as module
from russet.converters.texts.diversity import before_loop, distinct
from russet.converters.texts.openings import kinds_of
from russet.converters.texts.sample import SampleReport, SampleSettings, sample_text
from russet.engine.cli import main
from russet.engine.errors import ChatTemplateError, InvalidOptionError, OutputExistsError, TrainingDataError
from russet.engine.tokenizer import load_tokenizer

END = 256


def sample(src: Path, dst: Path, passages: Path | None = None, **settings) -> SampleReport:
    return sample_text(src, dst, SampleSettings(**{"tokens": 640, "batch": 4, "length": 64, **settings}), passages)


def ids_of(path: Path) -> np.ndarray:
    return np.fromfile(path, "<u2")


def test_recipes_take_what_is_written(tiny_folder: Path, prose: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    report = sample(tiny_folder, dst, prose, tokens=8 * 700, length=700, chat=0.25, lookup=0.5)
    assert sorted(path.name for path in dst.iterdir()) == [
        "chat_00.bin", "corpus.json", "lookup_00.bin", "plain_00.bin", "val.bin"
    ]  # fmt: skip
    assert report.tokens == {"plain": 1400, "chat": 1400, "lookup": 2800} and not report.cut + report.dropped
    corpus = Corpus(dst, 700, 259, tiny_folder / "tokenizer.json")
    assert len(corpus.train) + len(corpus.held_out) == 8 and len(corpus.held_out) == 3
    for path in dst.glob("*.bin"):
        rows = ids_of(path)[:-1].reshape(-1, 700)
        assert (rows[:, -1] == END).all() and ids_of(path)[-1] == END
    tokenizer = load_tokenizer(tiny_folder)
    assert tokenizer.decode(ids_of(dst / "chat_00.bin")[:17].tolist(), skip_special=False).startswith(
        "<|im_start|>user\n"
    )
    plain = ids_of(dst / "plain_00.bin")
    assert (plain[:699] < END).all() and tokenizer.decode([int(plain[0])]).isalpha()


def test_a_seed_decides(tiny_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample(tiny_folder, tmp_path / name, seed=seed)
    a, b, c = (ids_of(tmp_path / name / "plain_00.bin") for name in "abc")
    assert (a == b).all() and (a != c).any()


def test_system_prompts_take_turns(tiny_folder: Path, tmp_path: Path) -> None:
    sample(tiny_folder, tmp_path / "dst", chat=1.0, systems=("Be kind.",))
    text = load_tokenizer(tiny_folder).decode(ids_of(tmp_path / "dst" / "chat_00.bin").tolist(), skip_special=False)
    begun = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert text.count(begun) >= 3 and text.startswith("<|im_start|>user\n")


def test_time_that_is_over_leaves_what_there_is(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(module, "now", lambda: next(ticks))
    report = sample(tiny_folder, tmp_path / "dst", tokens=64_000, seconds=100)
    assert report.rows == 8 and 64 * 4 < sum(report.tokens.values()) < 64 * 8
    assert ids_of(tmp_path / "dst" / "val.bin")[-1] == END
    with pytest.raises(InvalidOptionError, match="no text"):
        sample(tiny_folder, tmp_path / "none", seconds=5)
    assert not (tmp_path / "none").exists()


def test_rows_are_cut_where_they_begin_to_go_round_in_circles(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setattr(module, "before_loop", lambda row: {0: 0, 1: 32, 2: len(row)}[int(row[0]) % 3])
    report = sample(tiny_folder, tmp_path / "dst", chat=0.0, length=64)
    assert report.cut and report.dropped and 640 <= report.tokens["plain"] < 640 + 64
    ids = np.concatenate([ids_of(tmp_path / "dst" / "plain_00.bin")[:-1], ids_of(tmp_path / "dst" / "val.bin")[:-1]])
    lengths = np.diff(np.flatnonzero(ids == END), prepend=-1)
    begun = ids[np.concatenate([[0], np.cumsum(lengths)[:-1]])]
    assert all(length == {1: 32, 2: 64}[begin % 3] for length, begin in zip(lengths, begun, strict=True))
    monkeypatch.setattr(module, "before_loop", lambda row: 1)
    with pytest.raises(TrainingDataError, match=f"Of 256 tokens that {tiny_folder.name} wrote 0 came before"):
        sample(tiny_folder, tmp_path / "none")


def test_what_cannot_be_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="passages"):
        sample(tiny_folder, tmp_path / "dst", lookup=0.5)
    with pytest.raises(InvalidOptionError, match="add up"):
        sample(tiny_folder, tmp_path / "dst", lookup=0.6)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(ChatTemplateError, match="--chat 0"):
        sample(tmp_path / "bare", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    (tmp_path / "dst").mkdir()
    with pytest.raises(OutputExistsError):
        sample(tiny_folder, tmp_path / "dst")


def test_loops_and_n_grams() -> None:
    rng = np.random.default_rng(0)
    free, phrase = rng.integers(0, 40_000, 1024), rng.integers(0, 40_000, 12)
    assert before_loop(free) == 1024 and before_loop(free[:20]) == 20
    assert before_loop(np.tile(phrase, 90)[:1024]) == 0 == before_loop(np.tile(phrase, 10))
    assert 448 <= before_loop(np.concatenate([free[:600], np.tile(phrase, 40)[:424]])) <= 600
    assert distinct([free]) == 1 and distinct([free, free]) == 0.5
    assert distinct([np.tile(phrase, 2)]) == 12 / 21 and distinct([free[:3]]) == 0


def test_kinds_are_spread_evenly() -> None:
    assert kinds_of(5, 0.4) == ["plain", "plain", "chat", "plain", "chat"]
    assert set(kinds_of(3, 0.0)) == {"plain"} and set(kinds_of(3, 1.0)) == {"chat"}


def test_the_command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("russet.engine.cli.sample.EVERY_S", 0)
    arguments = ["sample", tiny_folder, tmp_path / "dst", "--tokens", "256", "--length", "64", "--chat", "0", "--json"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    report = json.loads(result.stdout)
    assert result.stderr.startswith("russet: 4 tokens, ") and "russet: 256 tokens, " in result.stderr
    assert result.exit_code == 0 and report["tokens"] == {"plain": 256} and report["rows"] == 4
    arguments[2] = tmp_path / "more"
    text = CliRunner().invoke(main, [str(argument) for argument in arguments[:-1]]).stdout
    assert text.startswith(
        f"Wrote {tmp_path / 'more'}: tokens: 256 of plain; of 4 sampled rows 0 were cut and 0 left out at "
    )
