"""Superposition on tiny models of every family, beside a reference that runs each path alone in a cache of its own."""

from __future__ import annotations

from functools import cache as remember
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import russet
from russet.engine.cache import KVCache
from russet.engine.errors import EmptyPromptError, InvalidOptionError, PromptTooLongError
from russet.engine.prefill.base import PromptTokens, Segments
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.paths import Layout, Spacing, lay_out, packed
from russet.engine.prefill.superposition import Superposition
from russet.models.decoder import Decoder
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
# Windows, keys shared across layers on an int8 grid, key norms before and after the rotation.
KINDS = ("afm", "gemma3", "openelm", "qwen3")


@remember
def decoder_of(family: str) -> Decoder:
    return load_decoder(GOLDEN / family, "float32")


def parts_of(lengths: list[int], preamble: int = 5, query: int = 4, task: int = 3, seed: int = 0) -> Segments:
    """Random tokens that every golden vocabulary has."""
    random = np.random.default_rng(seed)

    def text(length: int) -> tuple[int, ...]:
        return tuple(random.integers(0, 64, length).tolist())

    return Segments(text(preamble), tuple(text(n) for n in lengths), text(query), text(task))


def prompt_of(parts: Segments) -> PromptTokens:
    documents = [token for document in parts.documents for token in document]
    return PromptTokens([*parts.preamble, *documents, *parts.query, *parts.task], 1, parts)


def append(decoder: Decoder, cache: KVCache, tokens: tuple[int, ...], positions: np.ndarray) -> tuple[mx.array, float]:
    """Run tokens after the cache's rows; the logits of the last one, and the mean log p of all but the first."""
    h = decoder.run(decoder.embed(mx.array([tokens])), range(len(decoder.blocks)), positions, cache)
    logits = np.array(decoder.head(h)[0], dtype=np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    picked = logs[np.arange(len(tokens) - 1), tokens[1:]]
    return mx.array(logits[-1:]), float(picked.mean()) if len(picked) else float("nan")


class Reference:
    """Path after path, nothing shared: what superposition is by definition."""

    def __init__(self, decoder: Decoder, parts: Segments, layout: Layout) -> None:
        self.decoder, self.parts, self.layout = decoder, parts, layout
        self.caches, self.likelihood, self.prior = [], [], []
        for document, positions in zip(parts.documents, layout.documents, strict=True):
            cache = decoder.new_cache()
            if parts.preamble:
                append(decoder, cache, parts.preamble, np.arange(float(len(parts.preamble))))
            self.prior.append(append(decoder, cache, document, positions)[1])
            where = layout.query + np.arange(float(len(parts.query)))
            self.likelihood.append(append(decoder, cache, parts.query, where)[1] if parts.query else float("nan"))
            self.caches.append(cache)

    def logits(self, kept: list[int]) -> mx.array:
        """After the task, which sees the preamble once and the kept paths."""
        merged = self.decoder.new_cache()
        shared = len(self.parts.preamble)
        for number, i in enumerate(kept):
            for layer, slot in self.caches[i].slots.items():
                skip = shared if number else 0
                keys, values = slot.rows.read(skip)
                merged.slot(layer).append(keys, values, slot.positions[skip:])
        where = self.layout.task + np.arange(float(len(self.parts.task)))
        return append(self.decoder, merged, self.parts.task, where)[0]


class Watched(Superposition):
    """Remembers what it ranked, and what it chose."""

    def best(self, likelihood: np.ndarray, prior: np.ndarray) -> list[int]:
        self.likelihood, self.prior = likelihood, prior
        self.chosen = super().best(likelihood, prior)
        return self.chosen


def close(ours: mx.array, theirs: mx.array, tolerance: float = 1e-4) -> bool:
    scale = float(mx.abs(theirs).max())
    return float(mx.abs(ours - theirs).max()) < tolerance * max(scale, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_document_equals_exact_prefill(family: str) -> None:
    decoder, prompt = decoder_of(family), prompt_of(parts_of([30]))
    ours, theirs = decoder.new_cache(), decoder.new_cache()
    prefilled, expected = Superposition(1)(decoder, prompt, ours), Exact()(decoder, prompt, theirs)
    assert close(prefilled.logits, expected.logits)
    assert ours.next_position == theirs.next_position
    token = mx.argmax(expected.logits, axis=-1)[None]
    step, expected_step = decoder.extend(token, ours), decoder.extend(token, theirs)
    assert step is not None and expected_step is not None and close(step, expected_step)
    assert (prefilled.exact, prefilled.strategy, prefilled.note) == (False, "superposition", "")


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(KINDS),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    preamble=st.integers(0, 6),
    query=st.integers(1, 5),
    task=st.integers(1, 4),
    keep=st.integers(1, 7),
    spacing=st.sampled_from(["equilibrium", "left"]),
    chunk=st.sampled_from([3, 16, 512]),
    seed=st.integers(0, 99),
)
def test_any_lengths_give_what_path_after_path_gives(
    family: str,
    lengths: list[int],
    preamble: int,
    query: int,
    task: int,
    keep: int,
    spacing: Spacing,
    chunk: int,
    seed: int,
) -> None:
    decoder, parts = decoder_of(family), parts_of(lengths, preamble, query, task, seed)
    reference = Reference(decoder, parts, lay_out(parts, spacing))
    strategy = Watched(keep, positions=spacing, chunk=chunk)
    cache = decoder.new_cache()
    prefilled = strategy(decoder, prompt_of(parts), cache)
    chosen = list(range(len(lengths)))
    # Of a number in the middle between two steps of AFM's int8 grid, the last bit decides which one it becomes.
    allowed, tolerance = (1e-2, 2e-3) if family == "afm" else (1e-3, 1e-4)
    if keep < len(lengths):
        chosen = strategy.chosen
        np.testing.assert_allclose(strategy.likelihood, reference.likelihood, atol=allowed)
        np.testing.assert_allclose(strategy.prior, reference.prior, atol=allowed)
    assert close(prefilled.logits, reference.logits(chosen), tolerance)
    rows = preamble + sum(lengths[i] + query for i in chosen) + task
    assert {len(slot.positions) for slot in cache.slots.values()} == {rows}
    assert cache.next_position == strategy.positions(prompt_of(parts))


def test_an_int8_cache_holds_what_an_int8_reference_holds() -> None:
    decoder, parts = decoder_of("llama"), parts_of([9, 14, 6])
    plain, small = decoder.new_cache(), decoder.new_cache(8)
    logits = [Superposition(2)(decoder, prompt_of(parts), cache).logits for cache in (plain, small)]
    assert small.slot(0).rows.buffers[0].dtype == mx.int8
    assert 0 < float(mx.abs(logits[0] - logits[1]).max()) < 0.05 * float(mx.abs(logits[0]).max())


def test_only_the_kept_paths_leave_rows_at_their_own_positions() -> None:
    decoder, parts = decoder_of("llama"), parts_of([8, 20, 5, 12])
    strategy, cache = Watched(2), decoder.new_cache()
    strategy(decoder, prompt_of(parts), cache)
    layout = lay_out(parts, "equilibrium")
    expected = [np.arange(5.0), *(layout.documents[i] for i in strategy.chosen)]
    expected += [layout.query + np.arange(4.0)] * 2 + [layout.task + np.arange(3.0)]
    assert sorted(cache.slot(0).positions) == sorted(np.concatenate(expected))
    assert cache.next_position == layout.task + 3


def test_work_counts_every_copy_of_the_query() -> None:
    decoder, parts = decoder_of("llama"), parts_of([8, 20, 5])
    work = Superposition(1)(decoder, prompt_of(parts), decoder.new_cache()).work.layer_tokens
    writer = decoder.config.last_writer
    assert work[:writer] == [5 + 33 + 3 * 4 + 3] * writer
    assert work[writer] == 33 + 3 * 4 + 1  # the preamble and the task stop there, but for the last row
    # With as many as there are, nothing is scored.
    assert Superposition(3)(decoder, prompt_of(parts), decoder.new_cache()).work.layer_tokens[writer] == 1


def test_without_a_task_the_last_token_of_the_query_sees_all_paths() -> None:
    decoder, parts = decoder_of("llama"), parts_of([8, 11], query=6, task=0)
    moved = Segments(parts.preamble, parts.documents, parts.query[:-1], parts.query[-1:])
    ours, same = (Superposition(2)(decoder, prompt_of(p), decoder.new_cache()).logits for p in (parts, moved))
    assert close(ours, same, 1e-6)
    lone = Segments(parts.preamble, parts.documents, parts.query[:1])
    assert Superposition(1)(decoder, prompt_of(lone), decoder.new_cache()).strategy == "superposition"


def test_empty_documents_are_left_out() -> None:
    decoder, parts = decoder_of("llama"), parts_of([8, 11])
    gaps = Segments(parts.preamble, ((), parts.documents[0], (), parts.documents[1]), parts.query, parts.task)
    ours, same = (Superposition(1)(decoder, prompt_of(p), decoder.new_cache()).logits for p in (gaps, parts))
    assert close(ours, same, 1e-6)


def test_two_hundred_documents_take_the_room_of_one(tiny_model: russet.Model) -> None:
    prompt = russet.Prompt("Read.", [f"Document {i}" for i in range(200)], "Which?")  # type: ignore[arg-type]
    with pytest.raises(PromptTooLongError, match="context holds 512"):
        tiny_model.generate(prompt, max_tokens=2)
    reply = tiny_model.generate(prompt, prefill=Superposition(3), max_tokens=5, logit_bias={258: -1e9})
    assert (reply.strategy, reply.exact, len(reply.tokens)) == ("superposition", False, 5)


def test_paths_that_are_too_long_are_refused_before_any_work(tiny_model: russet.Model) -> None:
    prompt = russet.Prompt("Read.", ["word " * 100, "word " * 110], "Which?")  # type: ignore[arg-type]
    with pytest.raises(PromptTooLongError, match=r"is \d+ tokens long and takes \d+ positions and the model's context"):
        tiny_model.stream(prompt, prefill=Superposition(1))


def test_the_reply_ends_with_the_context(tiny_model: russet.Model) -> None:
    prompt = russet.Prompt("", ["a" * 420, "b" * 420], "Which?")  # type: ignore[arg-type]
    taken = Superposition(1).positions(tiny_model.prepare(prompt))
    reply = tiny_model.generate(prompt, prefill=Superposition(1), logit_bias={258: -1e9})
    assert (len(reply.tokens), reply.finish_reason) == (512 - taken, "length")


class NotOurs:
    """As mlx-lm's models look to a strategy."""

    max_positions = 4096

    def __init__(self, decoder: Decoder) -> None:
        self.extend = decoder.extend


@pytest.mark.parametrize("case", ["no parts", "no documents", "cache in use", "foreign"])
def test_what_it_is_not_for_runs_exactly_and_says_so(case: str) -> None:
    decoder, parts = decoder_of("llama"), parts_of([] if case == "no documents" else [6, 7])
    prompt, cache = prompt_of(parts), decoder.new_cache()
    if case == "no parts":
        prompt = PromptTokens(prompt.tokens)
    if case == "cache in use":
        decoder.extend(mx.array([[1]]), cache)
    model = NotOurs(decoder) if case == "foreign" else decoder
    prefilled = Superposition(1)(model, prompt, cache)
    assert (prefilled.exact, prefilled.strategy) == (True, "exact")
    assert prefilled.note.startswith("Superposition does not apply: ") and prefilled.note.endswith(".")


def test_falling_back_on_a_prompt_that_does_not_fit_is_refused() -> None:
    decoder = decoder_of("llama")
    model = NotOurs(decoder)
    model.max_positions = 20
    with pytest.raises(
        PromptTooLongError, match="Superposition does not apply, because the model runs through another program"
    ):
        Superposition(1)(model, prompt_of(parts_of([6, 7])), decoder.new_cache())


@pytest.mark.parametrize(
    "settings",
    [
        *({"keep": keep} for keep in (0, 1.5, True)),
        {"positions": "right"},
        {"prior_weight": float("nan")},
        {"documents": ["a text"]},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(settings))):
        Superposition(**settings)


def test_a_query_of_no_tokens_is_refused() -> None:
    decoder = decoder_of("llama")
    with pytest.raises(EmptyPromptError, match="no query"):
        Superposition(1)(decoder, prompt_of(parts_of([5], query=0)), decoder.new_cache())


def test_the_best_are_those_with_query_and_document_most_probable() -> None:
    nan = float("nan")
    likelihood, prior = np.array([-3.0, -1.0, -2.0, -2.5]), np.array([-1.0, -4.0, -1.5, nan])
    assert Superposition(2, prior_weight=1.0).best(likelihood, prior) == [0, 2]
    assert Superposition(1, prior_weight=1.0).best(likelihood, prior) == [2]
    assert Superposition(2).best(likelihood, prior) == [1, 2]
    assert Superposition(2).best(np.full(3, nan), np.full(3, nan)) == [0, 1]  # nothing to tell them apart


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(0, 9), st.sampled_from(["equilibrium", "left"])
)
def test_every_document_lies_between_preamble_and_query(lengths: list[int], preamble: int, spacing: Spacing) -> None:
    layout = lay_out(parts_of(lengths, preamble), spacing)
    for length, positions in zip(lengths, layout.documents, strict=True):
        assert len(positions) == length and positions[0] == preamble and positions[-1] < layout.query
        assert length == 1 or spacing == "left" or np.allclose(np.diff(positions), (layout.query - preamble) / length)
    mean = len(lengths) / sum(1 / n for n in lengths)
    span = max(lengths) if spacing == "left" else round(mean)
    assert (layout.query, layout.task, layout.end) == (preamble + span, preamble + span + 4, preamble + span + 7)


def test_groups_are_as_large_as_the_limit_lets_them() -> None:
    assert list(packed([3, 4, 5, 20, 1, 1], 8)) == [[0, 1], [2], [3], [4, 5]]
    assert list(packed([], 8)) == []
