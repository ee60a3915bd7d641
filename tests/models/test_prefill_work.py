"""How much of a prompt each layer computes: what sharing keys and values, and unread logits, save."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from russet.engine.prefill.exact import Exact
from russet.models.decoder import Block, Decoder
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
    mx.eval(Exact(chunk)(decoder, list(range(1, tokens + 1)), decoder.new_cache()).logits)


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
