"""How much of a prompt each layer computes: what sharing keys and values, and unread logits, save."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.models.decoder import Block, Decoder, Probe
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """(layer, rows) of every attention and every projection that was built, in order."""
    seen: dict[str, list[tuple[int, int]]] = {"attention": [], "projection": []}
    attention, projection = Block._attention, Block._project

    def count_attention(self: Block, queries: mx.array, *rest: object) -> mx.array:
        seen["attention"].append((self.index, queries.shape[2]))
        return attention(self, queries, *rest)  # type: ignore[arg-type]

    def count_projection(self: Block, x: mx.array, *rest: object) -> mx.array:
        seen["projection"].append((self.index, x.shape[1]))
        return projection(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "_attention", count_attention)
    monkeypatch.setattr(Block, "_project", count_projection)
    return seen


def prefill(decoder: Decoder, tokens: int, chunk: int) -> None:
    mx.eval(Exact(chunk)(decoder, PromptTokens(range(1, tokens + 1)), decoder.new_cache()).logits)


def test_layers_that_share_an_earlier_slot_see_one_row_of_the_whole_prompt(rows: dict) -> None:
    decoder = load_decoder(GOLDEN / "afm")
    writer, count = decoder.config.last_writer, len(decoder.config.layers)
    assert 0 < writer < count - 1
    prefill(decoder, tokens=11, chunk=4)
    for layer in range(count):
        attended = [n for index, n in rows["attention"] if index == layer]
        projected = [n for index, n in rows["projection"] if index == layer]
        if layer < writer:
            assert attended == projected == [4, 4, 3]
        elif layer == writer:
            assert (projected, attended) == ([4, 4, 3], [1])
        else:
            assert projected == attended == [1]


def test_the_last_layer_attends_for_the_last_row_only(rows: dict) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    prefill(decoder, tokens=6, chunk=512)
    last = len(decoder.config.layers) - 1
    assert [n for index, n in rows["attention"] if index == last] == [1]
    assert {n for index, n in rows["attention"] if index < last} == {6}


def test_the_reply_counts_prompt_tokens_a_layer() -> None:
    decoder = load_decoder(GOLDEN / "afm")
    work = Exact(4)(decoder, PromptTokens(range(1, 12)), decoder.new_cache()).work
    writer = decoder.config.last_writer
    assert work.layer_tokens == [11] * writer + [1] * (len(decoder.config.layers) - writer)
    assert work.revived == 0


class Recorder(Probe):
    def __init__(self) -> None:
        self.rows: dict[int, tuple[mx.array, mx.array]] = {}

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.rows[layer] = (keys, values)


@pytest.mark.parametrize("variant", ["afm", "gemma3", "llama", "openelm", "qwen3"])
def test_rows_that_a_probe_saw_can_be_stored_again(variant: str) -> None:
    decoder = load_decoder(GOLDEN / variant)
    cache, copy, recorder = decoder.new_cache(), decoder.new_cache(), Recorder()
    layers = range(len(decoder.config.layers))
    decoder.run(decoder.embed(mx.array([[3, 5, 8, 13, 21]])), layers, 0, cache, probe=recorder)
    for layer, (keys, values) in recorder.rows.items():
        decoder.store(layer, keys, values, 0, copy)
    assert sorted(recorder.rows) == sorted(cache.slots)
    for layer, slot in cache.slots.items():
        for written, again in zip(slot.rows.stored(), copy.slots[layer].rows.stored(), strict=True):
            assert mx.array_equal(written, again)
        assert slot.positions.tolist() == copy.slots[layer].positions.tolist()
