"""Decoders that another program computes, by one with rows of fixed number: our own decoder in a package's clothes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.errors import InvalidOptionError, MissingDependencyError
from russet.models import runtimes
from russet.models.fingerprint import fingerprint
from russet.models.loading import load_decoder
from russet.models.runtimes.base import PackageDecoder

CONTEXT, CHUNK = 200, 16
SUFFIX = ".testpackage"


class Package(PackageDecoder):
    """The decoder in a folder, which keeps every row it was given and cuts them at the position of the next call."""

    runtime = "a test"
    padded = True
    chunk, max_positions, vocab_size = CHUNK, CONTEXT, 259

    def __init__(self, folder: Path) -> None:
        self.decoder = load_decoder(folder)
        self.sizes: list[int] = []

    def make_state(self) -> Any:
        return self.decoder.new_cache()

    def run(self, tokens: np.ndarray, position: int, state: Any) -> np.ndarray:
        assert tokens.dtype == np.int32 and tokens.ndim == 1
        assert len(tokens) == 1 or position + CHUNK <= CONTEXT
        self.sizes.append(len(tokens))
        assert state.trim(position)
        logits = self.decoder.extend(mx.array(tokens)[None], state)
        assert logits is not None
        return np.array(logits[0, -1])


@pytest.fixture
def package(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny model that is registered as a package."""
    path = tmp_path / f"tiny{SUFFIX}"
    shutil.copytree(tiny_folder, path)
    loads: list[str | None] = []

    def load(where: Path, compute_units: str | None) -> Package:
        loads.append(compute_units)
        return Package(where)

    kind = SimpleNamespace(files=lambda where: where, load=load, loads=loads)
    monkeypatch.setitem(runtimes.PACKAGES, SUFFIX, ("kind.of.test", "numpy", "none"))
    monkeypatch.setitem(sys.modules, "kind.of.test", kind)
    return path


def test_a_package_generates_as_the_model_does(package: Path, tiny_folder: Path) -> None:
    ours, theirs = russet.load(tiny_folder), russet.load(package)
    prompt = list(range(40))
    assert theirs.generate(prompt, max_tokens=9).tokens == ours.generate(prompt, max_tokens=9).tokens
    assert theirs.max_positions == CONTEXT and theirs.vocab_size == 259
    assert "llama through a test (exact prefill only" in theirs.card


def test_calls_are_chunks_and_single_tokens_where_a_chunk_would_not_fit(package: Path) -> None:
    model = russet.load(package)
    model.generate(list(range(190)), max_tokens=3)
    assert isinstance(model.decoder, Package)
    assert model.decoder.sizes == [16] * 11 + [14] + [1] * 2
    model.decoder.sizes.clear()
    model.generate(list(range(197)), max_tokens=3)
    assert model.decoder.sizes == [16] * 12 + [1] * 5 + [1] * 2


def test_a_session_computes_only_what_is_new(package: Path, tiny_folder: Path) -> None:
    model, ours = russet.load(package), russet.load(tiny_folder)
    talk, wanted = model.session(max_tokens=6), ours.session(max_tokens=6)
    for said in ("Hello there", "And again"):
        reply, expected = talk.respond(said), wanted.respond(said)
        assert reply.tokens == expected.tokens
        assert reply.timings.cached_tokens == expected.timings.cached_tokens
    assert reply.timings.cached_tokens > 0


def test_a_package_refuses_what_it_cannot(package: Path) -> None:
    with pytest.raises(InvalidOptionError, match="dtype is 'float16', but a package computes as it was converted"):
        russet.load(package, dtype="float16")
    with pytest.raises(InvalidOptionError, match="compute_units is 'gpu'; it must be all, cpu"):
        russet.load(package, compute_units="gpu")
    model = russet.load(package, compute_units="cpu", kv_bits=8)
    with pytest.raises(InvalidOptionError, match=r"kv_bits 8 is for Russet's own architectures.*through a test"):
        model.generate([1, 2], max_tokens=1)
    with pytest.raises(InvalidOptionError, match="logits of the last token only"):
        model.decoder.extend(mx.array([[1, 2]]), model.decoder.new_cache(), logits=2)


def test_compute_units_are_for_packages(tiny_folder: Path) -> None:
    with pytest.raises(InvalidOptionError, match="compute_units is for packages"):
        russet.load(tiny_folder, compute_units="all")


def test_a_missing_library_is_named_with_its_extra(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.PACKAGES, SUFFIX, ("kind.of.test", "no_such_library", "such"))
    with pytest.raises(MissingDependencyError, match=r"no_such_library; install russet\[such\]"):
        russet.load(package)


def test_a_folder_of_packages_is_recognised_and_a_model_folder_is_not(package: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / f"part-1{SUFFIX}").mkdir(parents=True)
    assert runtimes.package_suffix(parts) == SUFFIX
    (parts / "model.safetensors").touch()
    assert runtimes.package_suffix(parts) is None
    assert runtimes.package_suffix(tmp_path / "absent") is None


def test_a_fingerprint_tells_packages_apart(package: Path) -> None:
    before = fingerprint(package)
    assert fingerprint(package) == before
    config = package / "config.json"
    config.write_text(config.read_text().replace("512", "511"))
    assert fingerprint(package) != before
