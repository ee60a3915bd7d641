"""Prefix caches: what is found again, what never is, and what damage, full disks and other processes do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine import prefix_store
from russet.engine.cache import KVCache
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.base import Prefilled, PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefix_block import BLOCK, block_names
from russet.engine.prefix_rows import usable_blocks
from russet.engine.prefix_store import PrefixStore, open_store, size_limit
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "openelm", "afm")
TEXT = "It was the best of times, it was the worst of times. " * 7


class Skimmed:
    """A lossy strategy: of the prompt, it computes the last half."""

    name = "skimmed"
    exact = False

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        half = PromptTokens(prompt.tokens[len(prompt.tokens) // 2 :])
        done = Exact()(decoder, half, cache)
        return Prefilled(done.logits, exact=False, strategy=self.name, work=done.work)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


@pytest.fixture
def model(tiny_folder: Path, folder: Path) -> russet.Model:
    return russet.load(tiny_folder, prefix_cache=folder)


def ask(model: russet.Model, text: str = TEXT, **settings: Any) -> russet.Reply:
    return model.generate(text, raw=True, max_tokens=6, logit_bias={258: -1e9}, **settings)


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def rows_of(cache: KVCache) -> dict[tuple[int, int], np.ndarray]:
    """Every stored row, by layer and position, as bytes."""
    return {
        (layer, int(position)): np.concatenate(
            [np.asarray(mx.contiguous(buffer[:, :, i]).view(mx.uint8)).ravel() for buffer in slot.rows.stored()]
        )
        for layer, slot in cache.slots.items()
        for i, position in enumerate(slot.positions)
    }


def filled(decoder: Any, tokens: list[int], kv_bits: int = 16) -> tuple[KVCache, np.ndarray]:
    cache = decoder.new_cache(kv_bits)
    return cache, np.array(Exact()(decoder, PromptTokens(tokens), cache).logits)


def test_nothing_is_written_unless_asked_for(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    model = russet.load(tiny_folder)
    assert model.prefix_store is None
    assert ask(model).timings.cached_tokens == 0
    assert not (tmp_path / "cache" / "prefixes").exists()


def test_true_means_the_cache_folder(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    ask(russet.load(tiny_folder, prefix_cache=True))
    assert stored(tmp_path / "cache" / "prefixes")


def test_a_prompt_is_found_again_by_another_process_and_answered_alike(
    model: russet.Model, tiny_folder: Path, folder: Path
) -> None:
    first = ask(model)
    assert (first.timings.cached_tokens, first.prompt_tokens) == (0, len(TEXT))
    again = ask(russet.load(tiny_folder, prefix_cache=folder))
    assert again.timings.cached_tokens == (len(TEXT) - 1) // BLOCK * BLOCK
    assert again.layer_tokens[0] == len(TEXT) - again.timings.cached_tokens
    assert again.tokens == first.tokens and again.exact


def test_the_longest_common_prefix_wins(model: russet.Model) -> None:
    ask(model, TEXT[:270])
    ask(model)
    assert ask(model, TEXT[:330] + "And then it ended.").timings.cached_tokens == 330 // BLOCK * BLOCK
    assert ask(model, "x" + TEXT).timings.cached_tokens == 0


def test_a_block_is_found_behind_its_own_beginning_only(model: russet.Model, folder: Path) -> None:
    """Its rows come from attention to what stood before it."""
    other = "y" * BLOCK
    ask(model, TEXT)
    ask(model, other + TEXT[64:200] + "z" * 100)
    assert ask(model, other + TEXT[BLOCK:]).timings.cached_tokens == 200 // BLOCK * BLOCK


def test_at_least_one_token_is_left_to_compute(model: russet.Model) -> None:
    ask(model, TEXT[: 5 * BLOCK])
    assert ask(model, TEXT[: 5 * BLOCK]).timings.cached_tokens == 4 * BLOCK


def test_short_prompts_are_not_kept(model: russet.Model, folder: Path) -> None:
    ask(model, TEXT[: prefix_store.MIN_TOKENS - 1])
    assert not folder.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_come_back_bit_for_bit(family: str, folder: Path) -> None:
    decoder = load_decoder(GOLDEN / family, "float16")
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 72, 400)]
    cache, logits = filled(decoder, tokens)
    store = PrefixStore(folder, family, 10**9)
    held = store.hold(cache, tokens)
    assert held is not None
    held.write()
    found = decoder.new_cache()
    store.fill(found, tokens, 450)
    assert found.next_position == 384
    expected, actual = rows_of(cache), rows_of(found)
    windowed = {layer for layer, slot in found.slots.items() if slot.window}
    assert {key for key in expected if key[1] < 384 and key[0] not in windowed} <= set(actual)
    assert all(np.array_equal(actual[key], expected[key]) for key in actual)
    rest = Exact()(decoder, PromptTokens(tokens).after(384), found)
    np.testing.assert_allclose(np.array(rest.logits), logits, atol=2e-2)


def test_a_slot_whose_window_dropped_rows_is_kept_as_far_as_it_goes(folder: Path) -> None:
    decoder = load_decoder(GOLDEN / "gemma3", "float32")
    tokens = [int(t) for t in np.random.default_rng(4).integers(0, 72, 1200)]
    cache = decoder.new_cache()
    for start in range(0, 1200, 100):
        decoder.extend(mx.array([tokens[start : start + 100]]), cache, logits=0)
    windowed = [slot for slot in cache.slots.values() if slot.window]
    assert windowed and all(slot.first > 8 for slot in windowed)
    store = PrefixStore(folder, "", 10**9)
    held = store.hold(cache, tokens)
    # Decoding goes on for long enough that the windows leave the prompt behind.
    for start in range(0, 1200, 100):
        decoder.extend(mx.array([tokens[start : start + 100]]), cache, logits=0)
    assert held is not None
    held.write()
    found = decoder.new_cache()
    store.fill(found, tokens, 1300)
    assert found.next_position == 1152
    _, expected = filled(decoder, tokens)
    actual = Exact()(decoder, PromptTokens(tokens).after(1152), found).logits
    np.testing.assert_allclose(np.array(actual), expected, atol=1e-4)
    # A shorter prefix needs rows that are not there, until a prompt that has them is stored.
    shorter = decoder.new_cache()
    store.fill(shorter, tokens[:300], 350)
    assert shorter.next_position == 0
    cache, _ = filled(decoder, tokens[:300])
    held = store.hold(cache, tokens[:300])
    assert held is not None
    held.write()
    store.fill(shorter, tokens[:300], 350)
    assert shorter.next_position == 256


def test_lossy_rows_are_neither_stored_nor_read(model: russet.Model, folder: Path) -> None:
    reply = ask(model, prefill=Skimmed())
    assert not reply.exact and not folder.exists()
    ask(model)
    assert ask(model, prefill=Skimmed()).timings.cached_tokens == 0
    assert ask(model).timings.cached_tokens > 0


def test_a_strategy_that_goes_on_while_decoding_is_not_stored(model: russet.Model, folder: Path) -> None:
    class Unfinished(Exact):
        def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
            done = super().__call__(decoder, prompt, cache)
            return Prefilled(done.logits, True, self.name, done.work, extend=decoder.extend)

    ask(model, prefill=Unfinished())
    assert not folder.exists()


def test_rows_out_of_order_are_not_stored(folder: Path) -> None:
    decoder = load_decoder(GOLDEN / "llama", "float32")
    tokens = [1] * 300
    cache = decoder.new_cache()
    decoder.run(decoder.embed(mx.array([tokens])), range(3), np.arange(300) * 1.5, cache)
    store = PrefixStore(folder, "", 10**9)
    held = store.hold(cache, tokens)
    assert held is not None
    held.write()
    assert not folder.exists()


def test_models_and_number_formats_are_kept_apart(
    tiny_folder: Path, folder: Path, tmp_path: Path, model: russet.Model
) -> None:
    ask(model)
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert ask(russet.load(other, prefix_cache=folder)).timings.cached_tokens == 0
    assert ask(russet.load(tiny_folder, prefix_cache=folder, dtype="float16")).timings.cached_tokens == 0
    int8 = russet.load(tiny_folder, prefix_cache=folder, kv_bits=8)
    assert ask(int8).timings.cached_tokens == 0
    again = ask(int8)
    assert again.timings.cached_tokens > 0 and not again.exact
    exact = ask(russet.load(tiny_folder, prefix_cache=folder))
    assert exact.timings.cached_tokens > 0 and exact.exact


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied", "no header"])
def test_damaged_files_are_ignored_with_one_warning_and_removed(
    model: russet.Model, folder: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    first = ask(model)
    names = block_names(model.prefix_store.namespace, model.encode(TEXT, raw=True))  # type: ignore[union-attr]
    for name in (names[2], names[4]):
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 1
        changed = {"cut": data[:-9], "changed": data, "emptied": b"", "no header": b"\xff" * 100}[harm]
        (folder / name).write_bytes(bytes(changed))
    with caplog.at_level("WARNING", "russet"):
        again = ask(model)
        assert again.timings.cached_tokens == 2 * BLOCK
        assert again.tokens == first.tokens
        # What was written anew hid a second damage, where only reading the rows shows it.
        assert ask(model).timings.cached_tokens in (4 * BLOCK, 5 * BLOCK)
        assert ask(model).timings.cached_tokens == 5 * BLOCK
    assert len(caplog.records) == 1 and "damaged" in caplog.text


def test_the_blocks_used_longest_ago_go_first_and_prefixes_from_their_ends(model: russet.Model, folder: Path) -> None:
    ask(model)
    block = stored(folder)[0].stat().st_size
    other = "A tale of another city. " * 15
    store = model.prefix_store
    assert store is not None
    store.limit = 8 * block
    ask(model, TEXT[:260])  # is used once more, so that the rest of TEXT's blocks are older
    ask(model, other[:300])
    assert sum(path.stat().st_size for path in stored(folder)) <= store.limit
    assert ask(model, other[:300]).timings.cached_tokens == 4 * BLOCK
    assert ask(model, TEXT).timings.cached_tokens == 4 * BLOCK


def test_the_beginning_of_a_prefix_counts_as_used_last(model: russet.Model, folder: Path) -> None:
    ask(model)
    store = model.prefix_store
    assert store is not None
    paths = store._paths(model.tokenizer.encode(TEXT))
    used = [path.stat().st_mtime_ns for path in paths if path.exists()]
    assert len(used) == len(stored(folder)) > 2 and used == sorted(used, reverse=True)


def test_a_hit_counts_as_use_where_nothing_can_be_written(model: russet.Model, folder: Path) -> None:
    ask(model)
    for path in stored(folder):
        os.utime(path, ns=(1, 1))
    store = model.prefix_store
    assert store is not None
    store._writable = False
    assert ask(model).timings.cached_tokens > 0
    assert all(path.stat().st_mtime_ns > 1 for path in stored(folder))


def test_a_prompt_over_the_limit_keeps_its_beginning(model: russet.Model, folder: Path) -> None:
    store = model.prefix_store
    assert store is not None
    store.limit = int(2.5 * BLOCK * model.decoder.new_cache().bytes_per_position)
    ask(model)
    assert len(stored(folder)) == 2
    store.limit = 0
    ask(model, "x" + TEXT)
    assert len(stored(folder)) == 2


def test_leftovers_of_a_crash_are_removed_later(model: russet.Model, folder: Path) -> None:
    folder.mkdir()
    old, new = folder / ".a.safetensors.1.safetensors", folder / ".b.safetensors.2.safetensors"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    ask(model)
    assert not old.exists() and new.exists()


def test_a_full_disk_is_one_warning_and_generation_goes_on(
    model: russet.Model, folder: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("russet.engine.array_file.mx.save_safetensors", full)
    with caplog.at_level("WARNING", "russet"):
        assert len(ask(model).tokens) == 6
        assert len(ask(model, "x" + TEXT).tokens) == 6
    assert len(caplog.records) == 1 and "full" in caplog.text
    assert stored(folder) == []


def test_the_files_are_private(model: russet.Model, folder: Path) -> None:
    ask(model)
    assert {path.stat().st_mode & 0o777 for path in stored(folder)} == {0o600}


def test_a_reply_that_is_stopped_early_leaves_its_prompt(model: russet.Model, folder: Path) -> None:
    pieces = model.stream(TEXT, raw=True, max_tokens=40, logit_bias={258: -1e9})
    next(pieces)
    assert not folder.exists()  # nothing is written while the reply is being made
    pieces.close()
    assert len(stored(folder)) == len(TEXT) // BLOCK


def test_two_processes_write_one_prefix(tiny_folder: Path, folder: Path) -> None:
    script = (
        "import sys, russet; model = russet.load(sys.argv[1], prefix_cache=sys.argv[2])\n"
        "for i in range(8): model.generate(sys.argv[3] + str(i // 4) * 64, raw=True, max_tokens=1)"
    )
    command = [sys.executable, "-c", script, str(tiny_folder), str(folder), TEXT[:300]]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert len(stored(folder)) == 6
    model = russet.load(tiny_folder, prefix_cache=folder)
    assert ask(model, TEXT[:300] + "1" * 80).timings.cached_tokens == 5 * BLOCK


def test_a_session_looks_up_its_first_turn(model: russet.Model, tiny_folder: Path, folder: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "logit_bias": {258: -1e9}}
    session = model.session(system=TEXT[:280], **options)
    first = session.respond("Hello")
    assert first.timings.cached_tokens == 0
    later = russet.load(tiny_folder, prefix_cache=folder).session(system=TEXT[:280], **options)
    again = later.respond("Hello")
    assert again.timings.cached_tokens == 5 * BLOCK - BLOCK * (first.prompt_tokens <= 5 * BLOCK)
    assert again.tokens == first.tokens
    assert later.respond("And?").tokens == session.respond("And?").tokens


def test_the_limit_is_a_number_of_bytes(monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_PREFIX_CACHE_BYTES", "1000")
    assert size_limit() == 1000
    monkeypatch.setenv("RUSSET_PREFIX_CACHE_BYTES", "2 GB")
    with pytest.raises(InvalidOptionError, match="'2 GB'; it must be a whole number of bytes"):
        size_limit()


def test_a_model_that_mlx_lm_runs_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Foreign:
        def new_cache(self, kv_bits: int) -> list:
            return []

    with caplog.at_level("WARNING", "russet"):
        assert open_store(True, tmp_path / "gpt2", Foreign(), 16) is None
    assert "gpt2 runs without" in caplog.text


@pytest.mark.parametrize(("window", "usable"), [(1, 5), (129, 5), (193, 5), (194, 0)])
def test_a_window_needs_the_blocks_that_the_next_token_sees(window: int, usable: int) -> None:
    slots = {0: SimpleNamespace(window=None), 1: SimpleNamespace(window=window)}
    held = [{0}, {0}, {0, 1}, {0, 1}, {0, 1}, {1}]
    assert usable_blocks(SimpleNamespace(slots=slots), held) == usable  # type: ignore[arg-type]
