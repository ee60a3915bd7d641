"""The fused decode step, by its references, beside decoding layer by layer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.convert import convert
from russet.engine.cache import KVCache
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.rows import RING
from russet.kernels import base
from russet.kernels.packed import Format
from russet.kernels.sheet import parts_of
from russet.models.decoder import Decoder
from russet.models.fused_layer import _sheet
from russet.models.linear import Affine, Quantized
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = sorted(path.name for path in GOLDEN.iterdir() if (path / "config.json").exists())
PROMPT = [7, 3, 11, 5, 2, 9, 4, 13, 1, 6]


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch):
    """Switch kernels to their references, as RUSSET_KERNELS=reference does."""
    for module in ("russet.kernels.base", "russet.models.fused", "russet.models.loading"):
        monkeypatch.setattr(f"{module}.mode", lambda: "reference")
    return base


def decode(decoder: Decoder, steps: int, prompt: list[int] = PROMPT, kv_bits: int = 16) -> tuple[np.ndarray, object]:
    cache = decoder.new_cache(kv_bits)
    logits = Exact(4)(decoder, PromptTokens(prompt), cache).logits
    out = []
    for step in range(steps):
        out.append(np.array(logits.reshape(-1).astype(mx.float32)))
        logits = decoder.extend(mx.array([[(5 * step + 3) % 60]]), cache)
    return np.array(out), cache


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_fused_step_gives_what_the_layers_give(variant: str, by_reference) -> None:
    steps = RING + 8
    fused = load_decoder(GOLDEN / variant)
    found, cache = decode(fused, steps)
    assert fused._step is not None
    plain = load_decoder(GOLDEN / variant)
    plain._step_made = True
    expected, other = decode(plain, steps)
    assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    assert cache.next_position == other.next_position
    for layer, slot in cache.slots.items():
        assert slot.positions.tolist() == other.slots[layer].positions.tolist()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("variant", ["afm", "gemma3", "llama", "mistral", "openelm", "qwen2", "qwen3"])
def test_a_step_takes_five_launches_a_layer_in_every_format(
    variant: str, bits: int, by_reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = GOLDEN / variant
    if bits < 16:
        convert(folder, tmp_path / "packed", bits=bits, group_size=32)
        folder = tmp_path / "packed"
    monkeypatch.setattr("russet.models.loading._expand", lambda *_: False)
    launched, call = [], base.Kernel.__call__
    monkeypatch.setattr(base.Kernel, "__call__", lambda self, *inputs: launched.append(self) or call(self, *inputs))
    fused, plain = load_decoder(folder), load_decoder(folder)
    plain._step_made = True
    found = decode(fused, 3)[0]
    # The prompt is computed layer by layer, then two tokens and the one that is not looked at.
    assert len(launched) == 3 * (5 * len(fused.blocks) + 2)
    expected = decode(plain, 3)[0]
    assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    # Rows that do not divide into groups stay dense.
    block = fused.blocks[0]
    maps = [*block.project.maps, *block.gate_up.maps, block.out, block.down]
    assert any(isinstance(each, Quantized) for each in maps) == (bits < 16)


@pytest.mark.parametrize("variant", ["gemma3", "llama"])
def test_a_traced_step_gives_the_same(variant: str, by_reference, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, plain = load_decoder(GOLDEN / variant), load_decoder(GOLDEN / variant)
    step = traced._fused_step()
    step._traced = mx.compile(step._step)
    taken = []
    monkeypatch.setattr(step, "_traced", lambda *rest, traced=step._traced: taken.append(1) or traced(*rest))
    assert np.abs(decode(traced, RING + 4)[0] - decode(plain, RING + 4)[0]).max() < 1e-5
    assert len(taken) == RING + 3  # all steps but the first, in which kernels are checked


def test_rows_with_scales_of_their_own_go_layer_by_layer(by_reference) -> None:
    fused, plain = load_decoder(GOLDEN / "llama"), load_decoder(GOLDEN / "llama")
    plain._step_made = True
    assert np.array_equal(decode(fused, 4, kv_bits=8)[0], decode(plain, 4, kv_bits=8)[0])


def same_by_steps_and_layers(talk: Callable[[Decoder, KVCache], Iterator[mx.array]]) -> None:
    """Assert that the logits which `talk` yields are the fused step's and the layers' alike."""
    outs = []
    for fused in (True, False):
        decoder = load_decoder(GOLDEN / "qwen3")
        decoder._step_made = not fused
        outs.append(np.concatenate([np.array(x).reshape(-1) for x in talk(decoder, decoder.new_cache())]))
    assert np.abs(outs[0] - outs[1]).max() < 2e-5


def single(decoder: Decoder, cache: KVCache, count: int) -> Iterator[mx.array]:
    for token in range(count):
        logits = decoder.extend(mx.array([[token]]), cache)
        mx.eval(logits)
        yield logits


def test_gaps_between_positions_stay(by_reference) -> None:
    """Rows that a lossy prefill left out, and rows that decoding adds after them."""

    def talk(decoder: Decoder, cache: KVCache) -> Iterator[mx.array]:
        h = decoder.embed(mx.array([[4, 9, 2]]))
        mx.eval(decoder.run(h, range(len(decoder.blocks)), np.array([0.0, 3.0, 6.5]), cache))
        cache.next_position = 9
        yield from single(decoder, cache, 3)
        assert all(slot.positions.tolist() == [0, 3, 6.5, 9, 10, 11] for slot in cache.slots.values())
        yield decoder.extend(mx.array([[1, 2]]), cache)

    same_by_steps_and_layers(talk)


def test_a_jump_of_the_next_position_is_seen(by_reference) -> None:
    """What the step prepared for positions to come does not serve another one, though the rows are as it left them."""

    def talk(decoder: Decoder, cache: KVCache) -> Iterator[mx.array]:
        mx.eval(decoder.extend(mx.array([[4, 9, 2]]), cache))
        yield from single(decoder, cache, 2)
        cache.next_position += 3
        yield from single(decoder, cache, 2)

    same_by_steps_and_layers(talk)


def test_a_switched_off_kernel_leaves_the_layers_to_decode(by_reference, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    step = decoder._fused_step()
    assert step is decoder._fused_step()
    # What the kernel and the room keep of it goes with the test.
    monkeypatch.setattr(base, "_switched_off", [])
    monkeypatch.setattr(step._head.project, "_disabled", "")
    step._head.project._disable("it does not run")
    assert decoder._fused_step() is None


def test_rows_that_were_read_between_two_steps_are_not_counted_twice(by_reference) -> None:
    """Reading moves the ring's rows into the buffers, at an unchanged position: a conversation is saved like that."""

    def talk(decoder: Decoder, cache: KVCache) -> Iterator[mx.array]:
        mx.eval(decoder.extend(mx.array([[4, 9, 2]]), cache))
        yield from single(decoder, cache, 3)
        for slot in cache.slots.values():
            mx.eval(slot.rows.read(0))
        yield from single(decoder, cache, 3)
        yield decoder.extend(mx.array([[1, 2]]), cache)  # by the layers, which read all rows

    same_by_steps_and_layers(talk)


@pytest.mark.parametrize(("low", "balanced"), [(-1.5, True), (-1.25, False)])
def test_two_bit_weights_with_middle_levels_lose_their_offsets(low: float, balanced: bool) -> None:
    w = mx.random.randint(0, 1 << 16, (8, 6), mx.uint32, mx.random.key(1))
    scales = mx.random.uniform(0.5, 1, (8, 3), key=mx.random.key(2)).astype(mx.float16)
    linear = Quantized(Affine(w, scales, low * scales, 32, 2))
    before = linear(mx.ones((1, 96), mx.float16))
    form, sheet = _sheet(linear, dtype=mx.float16)
    assert form.kind == Format(2, 32, balanced)
    assert mx.array_equal(linear(mx.ones((1, 96), mx.float16)), before)
    assert mx.array_equal(parts_of(form, sheet).w, w)


@pytest.mark.parametrize("variant", ["gemma3", "mistral"])
def test_rows_behind_a_window_are_dropped_while_decoding(variant: str, by_reference, monkeypatch) -> None:
    monkeypatch.setattr("russet.engine.cache.WINDOW_SLACK", 8)
    steps, plain = 3 * RING, load_decoder(GOLDEN / variant)
    found, cache = decode(load_decoder(GOLDEN / variant), steps)
    plain._step_made = True
    expected, _ = decode(plain, steps)
    assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    windowed = [slot for slot in cache.slots.values() if slot.window is not None]
    assert windowed
    assert all(slot.rows.length < slot.window + 8 + RING for slot in windowed)


def test_a_finished_cache_is_not_kept_alive(by_reference) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    _, cache = decode(decoder, 4)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_two_caches_by_turns_stay_apart(by_reference) -> None:
    decoder, plain = load_decoder(GOLDEN / "llama"), load_decoder(GOLDEN / "llama")
    plain._step_made = True
    outs = []
    for each in (decoder, plain):
        caches = [each.new_cache(), each.new_cache()]
        for cache, prompt in zip(caches, ([3, 1, 4], [1, 5]), strict=True):
            each.extend(mx.array([prompt]), cache)
        outs.append([np.array(each.extend(mx.array([[step % 50]]), caches[step % 2])) for step in range(20)])
    assert np.abs(np.array(outs[0]) - np.array(outs[1])).max() < 1e-5


def test_readers_that_see_another_way_than_the_writer_are_not_fused(by_reference, caplog) -> None:
    decoder = load_decoder(GOLDEN / "afm")
    reader = next(block for block in decoder.blocks if block.spec.kv_source is not None)
    reader.spec = replace(reader.spec, window=4)
    assert decoder._fused_step() is None
    assert "a rotation or window of their own" in caplog.text
