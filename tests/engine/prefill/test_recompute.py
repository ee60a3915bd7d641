"""Real rows among predicted ones: exact where all are real, and each token with one row a layer."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.errors import InvalidOptionError
from russet.engine.prefill import recompute
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.identity import Identity
from russet.engine.prefill.importance import LastRow
from russet.engine.prefill.kv_prediction import KVPrediction
from russet.engine.prefill.predictor import Predictor, expected_shapes, layer_map
from russet.engine.prefill.recompute import FEWEST, TAIL, common_layers
from russet.models.decoder import Decoder
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
VARIANTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
PROMPT = PromptTokens(np.random.default_rng(3).integers(0, 72, 50).tolist(), tail=5)


def first_layers_predictor(base: Decoder, layers: int) -> Predictor:
    """Random maps from the base's first layers."""
    kept, known = tuple(range(layers)), Identity.of(base)
    feeding = layer_map(base.config, kept)
    unmapped = tuple(i for i in kept if feeding[i] is not None)
    wanted = [None if i in unmapped else source for i, source in enumerate(feeding)]
    shapes = expected_shapes(wanted, known.keys_values, known.keys_values[:layers], known.hidden_dim)
    generator = np.random.default_rng(0)
    weights = {name: mx.array(generator.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    return Predictor(known, kept, feeding, weights, "normed", unmapped)


@pytest.mark.parametrize("rows", [16, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_tokens_real_is_exact_prefill(variant: str, rows: int) -> None:
    base = load_decoder(GOLDEN / variant, dtype="float32")
    strategy = KVPrediction(first_layers_predictor(base, 2), rows=rows, keep=1.0, scorer=LastRow())
    done = strategy(base, PROMPT, base.new_cache())
    exact = Exact(rows)(base, PROMPT, base.new_cache())
    assert done.strategy == "kv-prediction" and not done.exact
    assert mx.allclose(done.logits, exact.logits, atol=1e-3)


@pytest.mark.parametrize("rows", [16, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_token_has_one_row_a_layer_and_chosen_ones_run_on(variant: str, rows: int) -> None:
    base = load_decoder(GOLDEN / variant, dtype="float32")
    predictor = first_layers_predictor(base, 2)
    cache = base.new_cache()
    done = KVPrediction(predictor, rows=rows, keep=0.4, scorer=LastRow(pool=3))(base, PROMPT, cache)
    common, writer = common_layers(predictor), base.config.last_writer
    assert common == 1
    for layer, slot in cache.slots.items():
        assert sorted(slot.positions.tolist()) == list(range(50)), layer
        if layer > common:
            # Predicted rows come first, then the chosen ones, the prompt's end among them.
            assert slot.positions[-20:].tolist() == sorted(slot.positions[-20:])
            assert slot.positions[-TAIL:].tolist() == list(range(50 - TAIL, 50))
    assert done.work.layer_tokens == [50] + [20] * (writer - 1) + [1] * (len(base.blocks) - writer)
    assert cache.next_position == 50 and base.extend(mx.array([[3]]), cache) is not None


def test_more_real_rows_bring_other_logits() -> None:
    base = load_decoder(GOLDEN / "llama", dtype="float32")
    predictor = first_layers_predictor(base, 2)
    logits = [KVPrediction(predictor, keep=keep)(base, PROMPT, base.new_cache()).logits for keep in (0, 0.2, 0.5)]
    assert not mx.allclose(logits[0], logits[1], atol=1e-3) and not mx.allclose(logits[1], logits[2], atol=1e-3)


def test_a_share_that_is_none_is_refused() -> None:
    base = load_decoder(GOLDEN / "llama", dtype="float32")
    with pytest.raises(InvalidOptionError, match=r"keep is 1\.5; it is a share of the prompt, from 0 to 1"):
        KVPrediction(Predictor.identity(base), keep=1.5)


def test_what_ranks_high_is_computed_and_so_is_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_decoder(GOLDEN / "llama", dtype="float32")
    scores, high = np.zeros(len(PROMPT.tokens)), [3, 9, 17, 23, 25, 30, 31, 33]
    scores[high] = 1.0
    monkeypatch.setattr(recompute, "score", lambda *_: scores)
    cache = base.new_cache()
    KVPrediction(first_layers_predictor(base, 2), keep=(TAIL + 9) / 50)(base, PROMPT, cache)
    last = cache.slots[base.config.last_writer].positions
    assert last[-TAIL - 9 :].tolist() == [0, *high, *range(50 - TAIL, 50)]


def test_a_small_share_of_a_short_prompt_is_not_its_end_alone() -> None:
    base = load_decoder(GOLDEN / "llama", dtype="float32")
    predictor, short = first_layers_predictor(base, 2), PromptTokens(list(range(1, FEWEST - 2)))
    for prompt, wanted in ((PROMPT, FEWEST), (short, len(short.tokens))):
        done = KVPrediction(predictor, keep=0.02)(base, prompt, base.new_cache())
        assert done.work.layer_tokens[common_layers(predictor)] == wanted
