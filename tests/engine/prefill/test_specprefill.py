"""SpecPrefill: what is kept, where it lands, and that keeping everything is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill import specprefill
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.specprefill import SpecPrefill, choose, importance, moving_average
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
VARIANTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
PROMPT = PromptTokens(np.random.default_rng(7).integers(0, 72, 150).tolist(), tail=5)


@pytest.fixture(scope="module")
def decoders() -> dict[str, Decoder]:
    return {variant: load_decoder(GOLDEN / variant, dtype="float32") for variant in VARIANTS}


def reply(decoder: Decoder, prefill: Any, prompt: PromptTokens = PROMPT, count: int = 6) -> list[int]:
    """Greedy tokens after the prompt, by the decoder's own `extend`."""
    cache = decoder.new_cache()
    logits = prefill(decoder, prompt, cache).logits
    tokens = []
    for _ in range(count):
        token = mx.argmax(logits, axis=-1)
        tokens.append(int(token.item()))
        step = decoder.extend(token[:, None], cache)
        assert step is not None
        logits = step[:, -1]
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_everything_is_exact(decoders: dict[str, Decoder], variant: str) -> None:
    decoder = decoders[variant]
    caches = decoder.new_cache(), decoder.new_cache()
    whole = SpecPrefill(keep=1.0, rows=64)(decoder, PROMPT, caches[0])
    exact = Exact(64)(decoder, PROMPT, caches[1])
    assert whole.exact and whole.strategy == "specprefill"
    assert whole.work == exact.work
    for layer, slot in caches[0].slots.items():
        for ours, theirs in zip(slot.rows.stored(), caches[1].slots[layer].rows.stored(), strict=True):
            assert mx.array_equal(ours, theirs)
    assert mx.array_equal(whole.logits, exact.logits)
    assert reply(decoder, SpecPrefill(keep=1.0, rows=64)) == reply(decoder, Exact(64))


def test_keeping_everything_asks_no_draft(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(specprefill, "importance")
    SpecPrefill(keep=1.0)(decoders["llama"], PROMPT, decoders["llama"].new_cache())
    with pytest.raises(NameError):
        SpecPrefill(keep=0.9)(decoders["llama"], PROMPT, decoders["llama"].new_cache())


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_rows_are_at_their_own_positions(decoders: dict[str, Decoder], variant: str) -> None:
    decoder = decoders[variant]
    cache = decoder.new_cache()
    done = SpecPrefill(keep=0.2, draft=0.5, rows=32)(decoder, PROMPT, cache)
    assert not done.exact and done.note == "" and done.extend is None
    assert cache.next_position == 150
    for slot in cache.slots.values():
        positions = slot.positions.tolist()
        assert positions == sorted(set(positions))
        assert {0.0, 1.0, 2.0, 3.0} <= set(positions) and set(range(150 - 32, 150)) <= set(positions)
        # One chunk in five, the first tokens and the last 32.
        assert len(positions) <= 32 + 4 + 32
    rows = {len(slot.positions) for slot in cache.slots.values()}
    writer = decoder.config.last_writer
    assert done.work.layer_tokens == [rows.pop()] * writer + [1] * (len(decoder.blocks) - writer)
    assert not rows


SCATTERED = np.array([0, 1, 2, 3, 40, 41, 42, 77, 148, 149])
RUNS = np.array([*range(21), *range(60, 80), 148, 149])
"""Runs longer than any window of the tiny models, the first one cut between two pieces."""


@pytest.mark.parametrize(("kept", "rows"), [(SCATTERED, 4), (RUNS, 16)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_equal_those_that_the_kept_tokens_write_one_by_one(
    decoders: dict[str, Decoder], variant: str, kept: np.ndarray, rows: int
) -> None:
    decoder = decoders[variant]
    cache, reference = decoder.new_cache(), decoder.new_cache()
    logits = specprefill.compute_rows(decoder, PROMPT.tokens, kept, cache, rows)
    for i in kept:
        reference.next_position = int(i)
        alone = decoder.extend(mx.array([[PROMPT.tokens[i]]]), reference)
    assert alone is not None
    assert mx.allclose(logits, alone[:, -1], atol=1e-4)
    following = [decoder.extend(mx.array([[9]]), which) for which in (cache, reference)]
    assert mx.allclose(following[0], following[1], atol=1e-4)  # type: ignore[arg-type]


def test_a_prefix_in_the_cache_stays_and_shifts_positions(decoders: dict[str, Decoder]) -> None:
    decoder = decoders["llama"]
    cache = decoder.new_cache()
    decoder.extend(mx.array([[1, 2, 3]]), cache, logits=0)
    SpecPrefill(keep=0.3, draft=1.0)(decoder, PROMPT, cache)
    positions = cache.slots[0].positions
    assert positions[:7].tolist() == list(range(7)) and positions[-1] == 152
    assert cache.next_position == 153
    whole = decoder.new_cache()
    decoder.extend(mx.array([[1, 2, 3]]), whole, logits=0)
    SpecPrefill(keep=1.0)(decoder, PROMPT, whole)
    assert whole.slots[0].positions.tolist() == list(range(153))


def test_a_long_tail_is_kept_whole(decoders: dict[str, Decoder]) -> None:
    cache = decoders["llama"].new_cache()
    SpecPrefill(keep=0.01)(decoders["llama"], replace(PROMPT, tail=100), cache)
    assert set(range(50, 150)) <= set(cache.slots[0].positions.tolist())


def test_layers_of_the_base_are_put_together_once_for_each_base(decoders: dict[str, Decoder]) -> None:
    strategy = SpecPrefill()
    first = strategy._draft(decoders["llama"])
    assert strategy._draft(decoders["llama"]) is first
    assert strategy._draft(decoders["afm"]).config.family == decoders["afm"].config.family


def test_the_tail_is_kept_where_it_is_longer_than_the_usual_end() -> None:
    scores = np.zeros(200, dtype=np.float32)
    kept = choose(scores, keep=0.01, chunk=10, last=90)
    assert set(kept) == set(range(10)) | set(range(110, 200))


def test_the_best_chunks_are_kept_and_rounded_up() -> None:
    scores = np.zeros(100, dtype=np.float32)
    scores[[35, 61]] = 1.0, 0.5
    scores[96:] = 0.3
    # Chunks of 32 tokens and one of 4, whose mean is the highest.
    assert choose(scores, keep=0.26, chunk=32, last=1).tolist() == [0, 1, 2, 3, *range(32, 64), *range(96, 100)]
    assert len(choose(scores, keep=1.0, chunk=32, last=1)) == 100


def test_what_is_kept_anyway_takes_no_place() -> None:
    scores = np.zeros(100, dtype=np.float32)
    scores[:4] = scores[80:] = 9.0
    scores[30] = 0.1
    # Two of ten chunks: by the mean of all scores, both would be among the first and the last tokens.
    assert choose(scores, keep=0.2, chunk=10, last=20).tolist() == [*range(10), *range(30, 40), *range(80, 100)]


def test_any_choice_is_in_order_whole_and_within_its_budget() -> None:
    generator = np.random.default_rng(5)
    for _ in range(300):
        count, chunk, last = (int(n) for n in generator.integers(1, [400, 70, 90]))
        keep = float(generator.uniform(0.001, 1))
        kept = choose(generator.random(count).astype(np.float32), keep, chunk, last)
        assert kept.tolist() == sorted(set(kept.tolist())) and kept[0] >= 0 and kept[-1] == count - 1
        assert set(range(min(4, count))) | set(range(max(0, count - last), count)) <= set(kept.tolist())
        assert len(kept) <= int(np.ceil(keep * np.ceil(count / chunk))) * chunk + 4 + last


@pytest.mark.parametrize("width", [1, 2, 3, 5, 13])
def test_the_moving_average(width: int) -> None:
    x = np.random.default_rng(0).random((2, 3, 20)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (0, 0), (width // 2, (width - 1) // 2)])
    expected = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1).mean(axis=-1)
    assert np.allclose(np.array(moving_average(mx.array(x), width)), expected, atol=1e-6)


@pytest.mark.parametrize("variant", ["afm", "gemma3", "llama", "openelm"])
def test_importance_is_the_published_one(decoders: dict[str, Decoder], variant: str) -> None:
    """Against NumPy, from queries and keys that a probe saw in a cache of its own."""
    draft = decoders[variant]
    tokens = PROMPT.tokens[:40]
    cache, seen = draft.new_cache(), []

    class Keep(specprefill.Watch):
        def queries(self, layer: int, queries: mx.array, cache: Any) -> None:
            keys = np.array(cache.slot(layer).rows.read(0)[0][0, :, :40])
            seen.append((layer, np.array(queries[0, :, 0]), keys))

    logits = Exact()(draft, PromptTokens(tokens), cache).logits
    for _ in range(2):
        h = draft.embed(mx.argmax(logits, axis=-1)[:, None])
        h = draft.run(h, range(len(draft.blocks)), cache.next_position, cache, probe=Keep((), 1))
        cache.next_position += 1
        logits = draft.head(h)[:, -1]
    highest = np.zeros((2, 40))
    for i, (layer, queries, keys) in enumerate(seen):
        if draft.config.layers[layer].window is not None:
            continue
        for head, query in enumerate(queries):
            products = keys[head * len(keys) // len(queries)] @ query * draft.blocks[layer].scale
            weights = np.exp(products - products.max())
            pooled = np.convolve(weights / weights.sum(), np.ones(13) / 13, mode="same")
            step = i // len(draft.blocks)
            highest[step] = np.maximum(highest[step], pooled)
    assert np.allclose(importance(draft, tokens, 2, 13, 16), highest.mean(axis=0), atol=1e-5)


def test_the_base_computes_the_chunks_that_the_draft_found_important(
    decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.zeros(150, dtype=np.float32)
    scores[70] = 1.0
    monkeypatch.setattr(specprefill, "importance", lambda *_: scores)
    cache = decoders["llama"].new_cache()
    SpecPrefill(keep=0.2, chunk=32)(decoders["llama"], PROMPT, cache)
    assert cache.slots[0].positions.tolist() == [*range(4), *range(64, 96), *range(118, 150)]


def test_windows_vote_where_no_layer_sees_everything(decoders: dict[str, Decoder]) -> None:
    scores = importance(decoders["mistral"], PROMPT.tokens, 2, 1, 64)
    assert np.isfinite(scores).all()
    assert scores[:142].max() == 0 and scores[-1] > 0


def test_rows_that_a_window_dropped_score_nothing(
    decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = importance(decoders["mistral"], PROMPT.tokens, 2, 1, 16)
    monkeypatch.setattr("russet.engine.cache.WINDOW_SLACK", 4)
    assert np.allclose(importance(decoders["mistral"], PROMPT.tokens, 2, 1, 16), kept, atol=1e-6)


def test_a_draft_of_another_size_may_serve(decoders: dict[str, Decoder]) -> None:
    draft = layer_pruned(decoders["afm"], (0, 1))
    done = SpecPrefill(keep=0.3, draft=draft)(decoders["llama"], PROMPT, decoders["llama"].new_cache())
    assert done.strategy == "specprefill" and not done.exact
    assert max(done.work.layer_tokens) < 150


def test_layers_may_be_named(decoders: dict[str, Decoder]) -> None:
    done = SpecPrefill(keep=0.3, draft=(0, 1))(decoders["llama"], PROMPT, decoders["llama"].new_cache())
    assert done.strategy == "specprefill" and done.note == ""


class Foreign:
    """A model that is not ours: exact prefill's call is all it has."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None:
        return self.decoder.extend(tokens, cache, logits)


def test_what_it_does_not_apply_to_is_exact_with_a_note(decoders: dict[str, Decoder]) -> None:
    llama = decoders["llama"]
    other = layer_pruned(llama, (0,))
    other.config = replace(other.config, vocab_size=99)
    small = layer_pruned(llama, (0,))
    small.config = replace(small.config, max_positions=64)
    cases = [
        (SpecPrefill(), Foreign(llama), PROMPT, "own architectures"),
        (SpecPrefill(), llama, PromptTokens(PROMPT.tokens[:127]), "128 tokens and more"),
        (SpecPrefill(draft=other), llama, PROMPT, "vocabulary of 99 tokens and the model one of 72"),
        (SpecPrefill(draft=small), llama, PROMPT, "context holds 64 tokens"),
    ]
    for strategy, model, prompt, reason in cases:
        done = strategy(model, prompt, llama.new_cache())
        assert (done.exact, done.strategy) == (True, "exact")
        assert reason in done.note and done.note.endswith("computed exactly.")
        exact = Exact()(llama, prompt, llama.new_cache())
        assert mx.array_equal(done.logits, exact.logits)


@pytest.mark.parametrize("settings", [{"keep": 0}, {"keep": 1.2}, {"lookahead": 0}, {"pool": 0}, {"chunk": 0}])
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="must be"):
        SpecPrefill(**settings)


@pytest.mark.parametrize("draft", ["smollm2-135m", {1}])
def test_what_cannot_draft_is_refused(tiny_model: Any, draft: Any) -> None:
    for wrong in (draft, tiny_model):
        with pytest.raises(InvalidOptionError, match=r"^draft is of type .*; give a decoder, as in russet\.load"):
            SpecPrefill(draft=wrong)


def test_a_reply_says_what_was_computed(tiny_model: Any) -> None:
    prompt = "What is this? " * 20
    done = tiny_model.generate(prompt, prefill=russet.SpecPrefill(keep=0.3), max_tokens=4)
    assert (done.strategy, done.exact, done.note) == ("specprefill", False, "")
    assert max(done.layer_tokens) < done.prompt_tokens
    short = tiny_model.generate("What is this?", prefill=russet.SpecPrefill(keep=0.3), max_tokens=4)
    assert (short.strategy, short.exact) == ("exact", True)
    assert short.note.startswith("SpecPrefill is for prompts of 128 tokens")
    whole = tiny_model.generate(prompt, prefill=russet.SpecPrefill(keep=1.0), max_tokens=8)
    assert whole.exact and whole.tokens == tiny_model.generate(prompt, max_tokens=8).tokens
