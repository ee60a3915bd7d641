"""Rows that are sampled together are what the decoder would say to each alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes.source import Source, open_source
from russet.converters.texts.lockstep import BLOCK, SAMPLED, Lanes, Plan, make_draw
from russet.models.loading import load_decoder

VOCAB, LENGTH = 259, BLOCK + 9
GOLDEN = Path(__file__).parents[2] / "golden"


def a_plan(batch: int, plain: bool = False, length: int = LENGTH, vocab: int = VOCAB) -> Plan:
    """Rows that begin with 1, 2, 3 ... given tokens and have one given token in the middle."""
    rng, tokens = np.random.default_rng(3), np.full((batch, length), SAMPLED, np.int32)
    for row in range(batch):
        tokens[row, : row + 1] = rng.integers(0, vocab - 3, row + 1)
        tokens[row, 20] = row
    return Plan(tokens, np.full(batch, plain))


def rows_of(
    source: Source,
    plan: Plan,
    seed: int = 0,
    lots: int = 1,
    temperature: float = 1.0,
    special: Sequence[int] = range(256, 259),
) -> np.ndarray:
    batch, length = plan.tokens.shape
    draw = make_draw(source.config.vocab_size, special, temperature, 0.0)
    lanes = Lanes(source, batch, length, draw, mx.float32, lots)
    first = lanes.round(plan, seed, lambda at: True)
    assert (lanes.round(plan, seed, lambda at: True) == first).all(), "room that was used before changes nothing"
    return first


def greedy(folder: Path, given: np.ndarray) -> list[int]:
    """What the decoder says to a row alone, token by token, where the plan leaves it to it."""
    decoder = load_decoder(folder)
    cache, said = decoder.new_cache(), [int(given[0])]
    for wanted in given[1:]:
        logits = decoder.extend(mx.array([[said[-1]]]), cache)
        assert logits is not None
        said.append(int(wanted) if wanted != SAMPLED else int(mx.argmax(logits[0, -1]).item()))
    return said


@pytest.mark.parametrize("lots", [1, 2])
def test_rows_are_what_the_decoder_says(tiny_folder: Path, source: Source, lots: int) -> None:
    plan = a_plan(5)
    rows = rows_of(source, plan, lots=lots, temperature=1e-4)
    assert [row.tolist() for row in rows] == [greedy(tiny_folder, given) for given in plan.tokens]


def test_a_window_of_attention_is_kept() -> None:
    folder = GOLDEN / "mistral"
    source = open_source(folder)
    assert {layer.window for layer in source.config.layers} == {8}
    plan = a_plan(2, length=40, vocab=72)
    rows = rows_of(source, plan, temperature=1e-4, special=())
    assert [row.tolist() for row in rows] == [greedy(folder, given) for given in plan.tokens]


def test_a_seed_decides(source: Source) -> None:
    plan = a_plan(3)
    first, again, other = (rows_of(source, plan, seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).mean() > 0.5
    given = plan.tokens != SAMPLED
    assert (first[given] == plan.tokens[given]).all()


def test_plain_rows_draw_no_special_token(source: Source) -> None:
    rows = rows_of(source, a_plan(8, plain=True), temperature=50.0)
    assert (rows < 256).all()
    assert (rows_of(source, a_plan(8), temperature=50.0) >= 256).any()


def test_unlikely_tokens_are_not_drawn() -> None:
    draw = make_draw(4, (), 1.0, 0.1)
    logits = mx.broadcast_to(mx.log(mx.array([0.6, 0.3, 0.07, 0.03])), (500, 4))
    drawn = np.array(draw(logits, mx.zeros((500, 1), mx.bool_), mx.random.key(0)))
    assert set(drawn.tolist()) == {0, 1, 2}


def test_a_round_can_be_stopped(source: Source) -> None:
    plan = a_plan(2)
    lanes = Lanes(source, 2, LENGTH, make_draw(VOCAB, (), 1.0, 0.0), mx.float32, 1)
    assert lanes.round(plan, 0, lambda at: at < 9).shape == (2, 10)
