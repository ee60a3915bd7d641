"""Tokens that decoding revives: which, how often, and the rows that they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.prefill import revival
from russet.engine.prefill.base import Prefilled, PromptTokens
from russet.engine.prefill.importance import Aggregated, LastRow, score
from russet.engine.prefill.lazyllm import LazyLLM
from russet.engine.prefill.pruning import Staged
from russet.engine.prefill.revival import AuxCache
from russet.models.decoder import Decoder
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
ONE_CUT = Staged({0.4: 0.5})
TWO_CUTS = Staged({0.4: 0.6, 0.7: 0.6})
LENGTH = 120


def start(family: str, **settings: Any) -> tuple[Decoder, list[int], Any, Prefilled]:
    decoder = load_decoder(GOLDEN / family)
    tokens = [int(token) for token in np.random.default_rng(7).integers(0, decoder.config.vocab_size, LENGTH)]
    cache = decoder.new_cache()
    return decoder, tokens, cache, LazyLLM(**settings)(decoder, PromptTokens(tokens), cache)


def step(decoder: Decoder, prefilled: Prefilled, cache: Any, token: int = 3) -> mx.array:
    logits = (prefilled.extend or decoder.extend)(mx.array([[token]]), cache)
    assert logits is not None
    return logits


def added(before: dict[int, int], cache: Any) -> dict[int, list[float]]:
    return {layer: slot.positions[before[layer] :].tolist() for layer, slot in cache.slots.items()}


def lengths(cache: Any) -> dict[int, int]:
    return {layer: slot.rows.length for layer, slot in cache.slots.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_revived_rows_are_those_of_a_pass_that_kept_them(family: str) -> None:
    """With one token revived, what it leaves in every layer equals one pass over the kept tokens and it."""
    decoder, tokens, cache, prefilled = start(family, schedule=ONE_CUT, revive=1)
    before = lengths(cache)
    boundary = next(iter(ONE_CUT.kept(decoder.config.last_writer + 1, LENGTH)))
    kept = cache.slots[boundary].positions
    step(decoder, prefilled, cache)
    new = added(before, cache)
    assert all(new[layer] == [LENGTH] for layer in new if layer < boundary)
    revived = new[boundary][0]
    assert revived not in kept
    rows = np.sort(np.append(kept, revived))
    reference = decoder.new_cache()
    h = decoder.run(decoder.embed(mx.array([tokens])), range(boundary), 0, reference)
    h = h[:, mx.array(rows.astype(np.int32))]
    decoder.run(h, range(boundary, decoder.config.last_writer + 1), rows, reference)
    there = int(np.searchsorted(rows, revived))
    for layer in range(boundary, decoder.config.last_writer + 1):
        assert new[layer] == [revived, LENGTH]
        ours, theirs = (c.slots[layer].rows.read(0) for c in (cache, reference))
        for one, other in zip(ours, theirs, strict=True):
            assert np.allclose(one[:, :, before[layer]], other[:, :, there], atol=2e-5)


def test_the_new_token_sees_what_was_revived() -> None:
    """Reviving all there is at once makes the last layers' answer that of a pass that dropped nothing."""
    settings = {"schedule": Staged({0.7: 0.4}), "scorer": LastRow(), "revive": LENGTH}
    decoder, tokens, cache, prefilled = start("llama", **settings)
    assert prefilled.extend is not None
    prefilled.extend._plan = {2: LENGTH}  # type: ignore[attr-defined]
    exact = decoder.new_cache()
    decoder.extend(mx.array([tokens]), exact)
    assert np.allclose(step(decoder, prefilled, cache), decoder.extend(mx.array([[3]]), exact), atol=1e-5)


@pytest.mark.parametrize("family", ["afm", "gemma3", "llama"])
def test_a_revived_token_goes_on_to_the_last_layer(family: str) -> None:
    decoder, _, cache, prefilled = start(family, schedule=TWO_CUTS, revive=3, scorer=Aggregated(queries=4, pool=5))
    plan = TWO_CUTS.kept(decoder.config.last_writer + 1, LENGTH)
    for _ in range(4):
        before = lengths(cache)
        step(decoder, prefilled, cache)
        new = added(before, cache)
        upper: set[float] = set()
        for layer in cache.slots:
            positions = new[layer]
            stages = sum(boundary <= layer for boundary in plan)
            assert positions[-1] == max(positions) >= LENGTH
            assert upper <= set(positions) and len(positions) <= 1 + 3 * stages
            upper = set(positions)
    assert cache.next_position == LENGTH + 4


def test_rows_revived_at_two_boundaries_keep_their_own_positions() -> None:
    decoder, _, cache, prefilled = start("llama", schedule=TWO_CUTS, revive=2)
    dropped = prefilled.extend._aux.dropped[2]  # type: ignore[union-attr]
    before = lengths(cache)
    step(decoder, prefilled, cache)
    positions = added(before, cache)[2]
    earlier = set(added(before, cache)[1])
    late = [i for i, position in enumerate(positions) if position not in earlier]
    assert len(late) == 2 and len(positions) == 5
    for i in late:
        at = int(np.searchsorted(dropped.positions, positions[i]))
        alone = decoder.new_cache()
        decoder.run(dropped.hidden[:, at : at + 1], range(2, 3), int(positions[i]), alone)
        key = cache.slots[2].rows.read(0)[0][:, :, before[2] + i]
        assert np.allclose(key, alone.slots[2].rows.read(0)[0][:, :, 0], atol=1e-5)


def test_a_boundary_ranks_the_tokens_that_came_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _, cache, prefilled = start("llama", schedule=TWO_CUTS, revive=2)
    ranked: dict[int, np.ndarray] = {}

    def recorded(scorer: Any, boundary: int, watch: Any, end: int, tokens: np.ndarray, *rest: Any) -> np.ndarray:
        ranked[boundary] = tokens
        return score(scorer, boundary, watch, end, tokens, *rest)

    monkeypatch.setattr(revival, "score", recorded)
    step(decoder, prefilled, cache)
    assert ranked[1].tolist() == list(range(LENGTH))
    assert ranked[2].tolist() == sorted(cache.slots[1].positions[:-1].tolist())


def test_work_counts_what_decoding_revives() -> None:
    decoder, _, cache, prefilled = start("llama", schedule=TWO_CUTS, revive=3)
    counts, before = list(prefilled.work.layer_tokens), lengths(cache)
    for _ in range(5):
        step(decoder, prefilled, cache)
    revived = {layer: len(positions) - 5 for layer, positions in added(before, cache).items()}
    assert prefilled.work.revived == sum(revived.values()) > 0
    more = [revived[layer] if layer < decoder.config.last_writer else 0 for layer in revived]
    assert prefilled.work.layer_tokens == [count + extra for count, extra in zip(counts, more, strict=True)]


def test_one_step_revives_no_more_than_its_budget() -> None:
    decoder, _, cache, prefilled = start("llama", schedule=ONE_CUT, revive=2)
    for _ in range(6):
        before = lengths(cache)
        step(decoder, prefilled, cache)
        assert len(added(before, cache)[2]) <= 3


def test_only_tokens_among_the_best_are_revived() -> None:
    """Though the budget has room for all, a dropped token must outrank a kept one."""

    class Fixed(LastRow):
        def scores(self, queries: mx.array, slot: Any, scale: float, end: int, window: int | None) -> mx.array:
            asked = [50.0, 60] if end == LENGTH else [20.0, 50, 70]
            return mx.array(np.isin(slot.positions, asked).astype(np.float32) - 0.01 * slot.positions / LENGTH)[None]

    settings = {"schedule": Staged({0.4: 38 / LENGTH}), "scorer": Fixed(), "revive": LENGTH}
    decoder, _, cache, prefilled = start("llama", **settings)
    kept = set(cache.slots[1].positions.tolist())
    assert {50, 60} <= kept and not {20, 70} & kept
    before = lengths(cache)
    step(decoder, prefilled, cache)
    *revived, last = added(before, cache)[1]
    assert last == LENGTH and {20, 70} <= set(revived)
    # Ranks after the three are by position: the earliest fill the rest of the 38.
    assert set(revived) == {70} | ({*range(36)} - kept)
    before = lengths(cache)
    step(decoder, prefilled, cache)
    assert added(before, cache)[1] == [LENGTH + 1]


@pytest.mark.parametrize("settings", [{"revive": 0}, {"revive": 4, "revive_steps": 0}])
def test_without_revival_decoding_is_the_decoders_own(settings: dict) -> None:
    _, _, _, prefilled = start("llama", schedule=ONE_CUT, **settings)
    assert prefilled.extend is None


def test_after_its_steps_decoding_is_the_decoders_own(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _, cache, prefilled = start("llama", schedule=ONE_CUT, revive=1, revive_steps=2)
    calls = []
    extend = decoder.extend
    monkeypatch.setattr(decoder, "extend", lambda *rest: calls.append(1) or extend(*rest))
    seen = []
    for _ in range(4):
        step(decoder, prefilled, cache)
        seen.append(len(calls))
    assert seen == [0, 0, 1, 2]
    assert cache.next_position == LENGTH + 4


def test_the_aux_cache_gives_a_token_once() -> None:
    aux = AuxCache()
    aux.put(4, mx.arange(12, dtype=mx.float32).reshape(1, 6, 2), np.array([1.0, 4, 5, 8, 9, 20]))
    assert aux.nbytes == 48 and aux.waiting
    dropped = aux.dropped[4]
    assert dropped.take(np.array([1, 3])).tolist() == [[[2, 3], [6, 7]]]
    assert dropped.positions[dropped.waiting].tolist() == [1, 5, 9, 20]
    dropped.take(np.array([0, 2, 4, 5]))
    assert not aux.waiting
