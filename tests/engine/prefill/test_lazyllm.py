"""LazyLLM on a tiny model of every family: exact where nothing is pruned, and sound bookkeeping where something is."""

from __future__ import annotations

from functools import cache as remember
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.cache import KVCache, as_array
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill import lazyllm
from russet.engine.prefill.base import Prefilled, PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.importance import Aggregated, LastRow
from russet.engine.prefill.lazyllm import LEAST, SHORTEST, LazyLLM
from russet.engine.prefill.pruning import FIRST, LAST, Linear, Staged
from russet.models.decoder import Block, Decoder
from russet.models.loading import load_decoder
from russet.models.rope import OnDevice, Rotary

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
STAGED = Staged({0.4: 0.7, 0.7: 0.7})
LENGTH = 120


@remember
def decoder_of(family: str) -> Decoder:
    return load_decoder(GOLDEN / family)


def prompt_of(decoder: Decoder, length: int = LENGTH, tail: int = 1) -> PromptTokens:
    tokens = np.random.default_rng(7).integers(0, decoder.config.vocab_size, length)
    return PromptTokens([int(token) for token in tokens], tail)


def greedy(decoder: Decoder, prefilled: Prefilled, cache: KVCache, count: int) -> list[int]:
    extend, logits, said = prefilled.extend or decoder.extend, prefilled.logits, []
    for _ in range(count):
        said.append(int(mx.argmax(logits[0]).item()))
        logits = extend(mx.array([[said[-1]]]), cache)[:, -1]
    return said


def boundaries(decoder: Decoder, length: int = LENGTH) -> dict[int, int]:
    return STAGED.kept(decoder.config.last_writer + 1, length)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """The positions that each layer computed keys and values for, in the order in which it did."""
    seen: dict[int, list[float]] = {}
    run = Block.__call__

    def counted(block: Block, h: mx.array, positions: Any, *rest: Any, **named: Any) -> mx.array:
        seen.setdefault(block.index, []).extend(as_array(positions, h.shape[1]).tolist())
        return run(block, h, positions, *rest, **named)

    monkeypatch.setattr(Block, "__call__", counted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_exact(family: str) -> None:
    decoder = decoder_of(family)
    ours, theirs = decoder.new_cache(), decoder.new_cache()
    lazy = LazyLLM(keep=1.0)(decoder, prompt_of(decoder), ours)
    exact = Exact()(decoder, prompt_of(decoder), theirs)
    assert np.array_equal(lazy.logits, exact.logits)
    assert (lazy.exact, lazy.strategy, lazy.extend) == (True, "exact", None)
    assert "keeps every token" in lazy.note
    assert greedy(decoder, lazy, ours, 8) == greedy(decoder, exact, theirs, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_hold_what_was_kept_at_its_own_positions(family: str) -> None:
    decoder = decoder_of(family)
    cache = decoder.new_cache()
    prefilled = LazyLLM(schedule=STAGED, revive=0)(decoder, prompt_of(decoder), cache)
    kept, before = LENGTH, set(range(LENGTH))
    plan = boundaries(decoder)
    assert plan
    for layer, slot in cache.slots.items():
        kept = plan.get(layer, kept)
        positions = slot.positions.tolist()
        assert len(positions) == kept and positions == sorted(positions)
        assert set(positions) <= before
        assert {*range(FIRST), *range(LENGTH - LAST, LENGTH)} <= set(positions)
        before = set(positions)
    assert cache.next_position == LENGTH
    assert (prefilled.exact, prefilled.strategy, prefilled.note) == (False, "lazyllm", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_work_is_counted_layer_by_layer(family: str, computed: dict[int, list[float]]) -> None:
    decoder = decoder_of(family)
    writer = decoder.config.last_writer
    prefilled = LazyLLM(schedule=STAGED, revive=0)(decoder, prompt_of(decoder), decoder.new_cache())
    counts = prefilled.work.layer_tokens
    assert len(counts) == len(decoder.blocks)
    for layer, count in enumerate(counts):
        assert count == (1 if layer >= writer else len(computed[layer]))
        assert layer <= writer or computed[layer] == [LENGTH - 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("revive", [0, 5])
def test_no_layer_computes_a_token_twice(family: str, revive: int, computed: dict[int, list[float]]) -> None:
    decoder = decoder_of(family)
    cache = decoder.new_cache()
    prefilled = LazyLLM(schedule=STAGED, revive=revive, revive_steps=6)(decoder, prompt_of(decoder), cache)
    greedy(decoder, prefilled, cache, 8)
    assert (prefilled.work.revived > 0) == (revive > 0)
    for positions in computed.values():
        assert len(positions) == len(set(positions))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_bits", [16, 8])
def test_chunks_do_not_change_the_result(family: str, kv_bits: int) -> None:
    decoder = decoder_of(family)
    whole, parts = decoder.new_cache(kv_bits), decoder.new_cache(kv_bits)
    one = LazyLLM(schedule=STAGED, chunk=512)(decoder, prompt_of(decoder), whole)
    many = LazyLLM(schedule=STAGED, chunk=17)(decoder, prompt_of(decoder), parts)
    for layer, slot in whole.slots.items():
        assert np.array_equal(slot.positions, parts.slots[layer].positions)
    # An int8 grid may round one row to either side.
    assert np.allclose(one.logits, many.logits, atol=1e-4 if kv_bits == 16 else 0.1)
    assert one.work == many.work


@pytest.mark.parametrize("family", FAMILIES)
def test_handing_layers_to_a_gpu_in_groups_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, logits = decoder_of(family), []
    for gpu in (False, True):
        monkeypatch.setattr(lazyllm, "on_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(lazyllm, "AT_ONCE", 1)
        logits.append(LazyLLM(schedule=STAGED, chunk=50)(decoder, prompt_of(decoder), decoder.new_cache()).logits)
    assert mx.array_equal(*logits)


@pytest.mark.parametrize("scorer", [LastRow(), Aggregated(depth=2)])
@pytest.mark.parametrize("family", ["llama", "openelm", "qwen3"])
def test_nothing_waits_for_a_ranking_where_one_pass_takes_all(
    family: str, scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's host builds everything behind a ranking before it has run: no positions are read back, none differ."""
    decoder, prompt, schedule = decoder_of(family), prompt_of(decoder_of(family)), Staged({0.4: 0.7, 0.7: 0.6})
    monkeypatch.setattr(decoder, "fused_rope", True)
    cache, parts = decoder.new_cache(), decoder.new_cache()
    read, host = [], OnDevice.host.func
    monkeypatch.setattr(OnDevice, "host", property(lambda at: read.append(at) or host(at)))
    one = LazyLLM(schedule=schedule, scorer=scorer)(decoder, prompt, cache)
    assert not read
    many = LazyLLM(schedule=schedule, scorer=scorer, chunk=17)(decoder, prompt, parts)
    assert read
    for layer, slot in cache.slots.items():
        assert np.array_equal(slot.positions, parts.slots[layer].positions)
    assert np.allclose(one.logits, many.logits, atol=1e-4)
    assert greedy(decoder, one, cache, 6) == greedy(decoder, many, parts, 6)


@pytest.mark.parametrize(("reply", "capacities"), [(8, [1280, 256, 256]), (300, [1536, 768, 768])])
def test_later_layers_take_no_more_memory_than_their_rows(reply: int, capacities: list[int]) -> None:
    decoder, length = decoder_of("llama"), 1000
    cache = decoder.new_cache()
    cache.reserve(length + reply)
    LazyLLM(schedule=Staged({0.5: 0.2}))(decoder, prompt_of(decoder, length), cache)
    assert [slot.rows.buffers[0].shape[2] for slot in cache.slots.values()] == capacities


def test_a_stage_equals_one_masked_pass() -> None:
    """Kept rows behind a boundary see each other as if the dropped keys were masked in a pass over all rows."""
    decoder = decoder_of("llama")
    cache, reference = decoder.new_cache(), decoder.new_cache()
    prompt = prompt_of(decoder)
    LazyLLM(schedule=Staged({0.4: 0.6}), chunk=16)(decoder, prompt, cache)
    h = decoder.run(decoder.embed(mx.array([prompt.tokens])), range(1), 0, reference)
    kept = cache.slots[1].positions.astype(int)
    assert len(kept) == 72
    block = decoder.blocks[1]
    decoder.run(h, range(1, 2), 0, reference)
    queries, *_ = block.project(block.attn_norm(h))
    rotate = Rotary(block.spec.rope).at(0, LENGTH, fused=False)
    queries = rotate(queries.reshape(1, LENGTH, block.spec.heads, -1).transpose(0, 2, 1, 3))
    keys, values = reference.slots[1].rows.read(0)
    seen = np.tril(np.ones((LENGTH, LENGTH), dtype=bool)) & np.isin(np.arange(LENGTH), kept)
    seen |= np.eye(LENGTH, dtype=bool)
    mixed = block.attend(queries, keys, values, block.scale, mx.array(seen)).transpose(0, 2, 1, 3)
    h = block.out.add_to(h, mixed.reshape(1, LENGTH, -1))
    h = block.down.add_to(h, block.gate(*block.gate_up(block.ffn_norm(h))))
    decoder.run(h, range(2, 3), 0, reference)
    for ours, theirs in zip(cache.slots[2].rows.read(0), reference.slots[2].rows.read(0), strict=True):
        assert np.allclose(ours, np.array(theirs)[:, :, kept], atol=1e-5)


@pytest.mark.parametrize("family", ["afm", "gemma3", "llama", "mistral"])
def test_it_goes_on_from_a_cached_prefix(family: str, computed: dict[int, list[float]]) -> None:
    decoder = decoder_of(family)
    cache, prompt = decoder.new_cache(), prompt_of(decoder, 40 + LENGTH)
    decoder.extend(mx.array([prompt.tokens[:40]]), cache, logits=0)
    held = {layer: np.array(slot.rows.read(0)[0]) for layer, slot in cache.slots.items()}
    computed.clear()
    prefilled = LazyLLM(schedule=STAGED, revive=2)(decoder, prompt.after(40), cache)
    plan = boundaries(decoder)
    kept = LENGTH
    for layer, slot in cache.slots.items():
        kept = plan.get(layer, kept)
        assert slot.positions[:40].tolist() == list(range(40))
        assert np.array_equal(np.array(slot.rows.read(0)[0])[:, :, :40], held[layer])
        assert len(slot.positions) == 40 + kept and len(computed[layer]) == kept
        assert set(range(40 + LENGTH - LAST, 40 + LENGTH)) <= set(slot.positions.tolist())
    assert cache.next_position == 40 + LENGTH
    assert prefilled.work.layer_tokens[0] == LENGTH
    greedy(decoder, prefilled, cache, 4)
    assert cache.next_position == 44 + LENGTH


def test_a_prefix_counts_as_the_beginning() -> None:
    """The first tokens of a sequence are protected, not the first ones after a prefix."""
    decoder = decoder_of("llama")
    cache, prompt = decoder.new_cache(), prompt_of(decoder, 240)
    decoder.extend(mx.array([prompt.tokens[:40]]), cache, logits=0)
    LazyLLM(schedule=Staged({0.4: 0.01}))(decoder, prompt.after(40), cache)
    assert cache.slots[1].positions[40:].tolist() == list(range(240 - LAST, 240))


def test_the_templates_tail_is_kept_whatever_its_length() -> None:
    decoder = decoder_of("llama")
    cache = decoder.new_cache()
    LazyLLM(schedule=Staged({0.4: 0.01}))(decoder, prompt_of(decoder, tail=LAST + 13), cache)
    assert cache.slots[1].positions.tolist() == [*range(FIRST), *range(LENGTH - LAST - 13, LENGTH)]


def test_the_scorers_queries_are_kept() -> None:
    decoder = decoder_of("llama")
    cache = decoder.new_cache()
    lazy = LazyLLM(schedule=Staged({0.4: 0.01}), scorer=Aggregated(queries=LAST + 9))
    lazy(decoder, prompt_of(decoder), cache)
    assert cache.slots[1].positions.tolist() == [*range(FIRST), *range(LENGTH - LAST - 9, LENGTH)]


@pytest.mark.parametrize("scorer", [LastRow(), Aggregated()])
@pytest.mark.parametrize("family", ["afm", "gemma3", "openelm"])
def test_linear_schedules_prune_at_every_layer(family: str, scorer: Any) -> None:
    decoder = decoder_of(family)
    cache = decoder.new_cache()
    LazyLLM(schedule=Linear(0.8, 0.5, 0.2, 0.9), scorer=scorer)(decoder, prompt_of(decoder), cache)
    lengths = [len(slot.positions) for slot in cache.slots.values()]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0] == LENGTH


def test_attention_decides_who_stays() -> None:
    """A layer whose keys point at one token: that token goes on, though it is neither first nor last."""
    decoder = decoder_of("llama")
    cache = decoder.new_cache()
    scores = []

    class Fixed(LastRow):
        def scores(self, queries: mx.array, slot: Any, scale: float, end: int, window: int | None) -> mx.array:
            scores.append(mx.array(np.isin(np.arange(slot.rows.length), [50, 60]).astype(np.float32)))
            return scores[-1][None]

    LazyLLM(schedule=Staged({0.4: (FIRST + LAST + 2) / LENGTH}), scorer=Fixed())(decoder, prompt_of(decoder), cache)
    assert cache.slots[1].positions.tolist() == [*range(FIRST), 50, 60, *range(LENGTH - LAST, LENGTH)]
    assert len(scores) == 1


def test_short_prompts_run_exactly_and_say_so() -> None:
    decoder = decoder_of("llama")
    prefilled = LazyLLM()(decoder, prompt_of(decoder, SHORTEST - 1), decoder.new_cache())
    assert (prefilled.exact, prefilled.strategy) == (True, "exact")
    assert (
        prefilled.note
        == f"LazyLLM starts at {SHORTEST} new tokens, and these are {SHORTEST - 1}, so prefill was exact."
    )
    assert not LazyLLM(schedule=STAGED)(decoder, prompt_of(decoder, SHORTEST), decoder.new_cache()).exact
    assert LazyLLM()(decoder, prompt_of(decoder, LEAST), decoder.new_cache()).exact


def test_other_decoders_run_exactly_and_say_so() -> None:
    decoder = decoder_of("llama")

    class Foreign:
        new_cache = staticmethod(decoder.new_cache)
        extend = staticmethod(decoder.extend)

    prefilled = LazyLLM()(Foreign(), prompt_of(decoder), decoder.new_cache())
    assert prefilled.exact and prefilled.work.layer_tokens == []
    assert "needs Russet's own decoder" in prefilled.note


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"keep": 1.5}, {"revive": -1}, {"revive_steps": -1}])
def test_impossible_settings_are_refused(arguments: dict) -> None:
    with pytest.raises(InvalidOptionError):
        LazyLLM(**arguments)


def test_a_reply_names_it(tiny_model: Any) -> None:
    reply = tiny_model.generate("word " * 60, raw=True, prefill=russet.LazyLLM(0.4), max_tokens=4)
    assert (reply.exact, reply.strategy, reply.note) == (False, "lazyllm", "")
    assert reply.layer_tokens[0] > reply.layer_tokens[1]
