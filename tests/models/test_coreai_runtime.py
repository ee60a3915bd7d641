"""The engine on a Core AI package: generation, chat and prefix reuse are those of an MLX model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coreai")

import russet
from russet.converters.exporting import ExportOptions, export
from russet.engine.errors import InvalidOptionError


@pytest.fixture(scope="module")
def package(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dst = tmp_path_factory.mktemp("coreai") / "tiny"
    export(tiny_folder, dst, "coreai", options=ExportOptions(weights="float32", chunk=16))
    return dst


@pytest.fixture(scope="module")
def model(package: Path):
    loaded = russet.load(package)
    yield loaded
    loaded.decoder.close()


def test_a_reply_is_the_mlx_models(model, tiny_model) -> None:
    ours, theirs = (m.generate("Why is the sky blue?", max_tokens=20, temperature=0) for m in (model, tiny_model))
    assert ours.tokens == theirs.tokens and ours.text == theirs.text and ours.exact
    drawn = [m.generate("Why?", max_tokens=12, temperature=0.9, top_p=0.9, seed=3).tokens for m in (model, tiny_model)]
    assert drawn[0] == drawn[1]


def test_a_chat_computes_what_is_new(model, tiny_model) -> None:
    ours, theirs = (m.session(system="Answer.", max_tokens=8, temperature=0) for m in (model, tiny_model))
    for text in ("What is this?", "And that?"):
        replies = [session.respond(text) for session in (ours, theirs)]
        assert replies[0].tokens == replies[1].tokens
        assert replies[0].timings.cached_tokens == replies[1].timings.cached_tokens
    assert replies[0].timings.cached_tokens > 0


def test_the_card_names_the_runtime(model) -> None:
    assert "llama through Apple's Core AI runtime" in model.card and "context 512 tokens" in model.card


def test_the_model_in_a_bundle_is_the_bundle(package: Path) -> None:
    loaded = russet.load(package / "tiny.aimodel")
    assert loaded.files == package / "tokenizer" and loaded.vocab_size == 259
    loaded.decoder.close()


def test_what_a_package_does_not_do(package: Path) -> None:
    with pytest.raises(InvalidOptionError, match="a package computes as it was converted"):
        russet.load(package, dtype="float16")
    if sys.platform == "linux":
        with pytest.raises(InvalidOptionError, match="computes on the CPU; leave it out"):
            russet.load(package, compute_units="cpu-ne")
        on_cpu = russet.load(package, compute_units="cpu")
        assert "Core AI runtime on cpu" in on_cpu.card
        on_cpu.decoder.close()


def test_a_process_ends_without_complaint(package: Path) -> None:
    code = (
        f"import russet; print(russet.load({str(package)!r}).generate('Hi', max_tokens=3, temperature=0).finish_reason)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip() in ("length", "stop")
