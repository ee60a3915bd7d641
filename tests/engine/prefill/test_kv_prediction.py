"""KV Prediction: exact where it predicts what the base computes, and refused where models do not belong together."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.errors import PredictorError
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.identity import Identity
from russet.engine.prefill.kv_prediction import KVPrediction
from russet.engine.prefill.predictor import Predictor, Seen, expected_shapes, layer_map
from russet.engine.prefill.predictor_folder import save_predictor
from russet.models.decoder import Decoder, Probe
from russet.models.layer_pruned import layer_pruned
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
VARIANTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
PROMPT = PromptTokens(np.random.default_rng(3).integers(0, 72, 50).tolist(), tail=5)


@pytest.fixture(scope="module")
def decoders() -> dict[str, Decoder]:
    return {variant: load_decoder(GOLDEN / variant, dtype="float32") for variant in VARIANTS}


def reply(decoder: Decoder, prefill: Any, count: int = 8) -> tuple[list[int], Any]:
    """Greedy tokens after the prompt, by the decoder's own `extend`, and the cache."""
    cache = decoder.new_cache()
    logits = prefill(decoder, PROMPT, cache).logits
    tokens = []
    for _ in range(count):
        token = mx.argmax(logits, axis=-1)
        tokens.append(int(token.item()))
        step = decoder.extend(token[:, None], cache)
        assert step is not None
        logits = step[:, -1]
    return tokens, cache


def random_predictor(base: Decoder, auxiliary: Decoder, name: str = "small", seed: int = 0) -> Predictor:
    known = Identity.of(base), Identity.of(auxiliary, name)
    layers = layer_map(base.config, auxiliary.config)
    shapes = expected_shapes(layers, known[0].keys_values, known[1].keys_values)
    generator = np.random.default_rng(seed)
    return Predictor(*known, layers, {name: mx.array(generator.normal(size=shape)) for name, shape in shapes.items()})


@pytest.mark.parametrize("rows", [16, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_identity_predictor_is_exact_to_the_token(decoders: dict[str, Decoder], variant: str, rows: int) -> None:
    decoder = decoders[variant]
    strategy = KVPrediction(Predictor.identity(decoder), rows=rows)
    done = strategy(decoder, PROMPT, decoder.new_cache())
    exact = Exact(rows)(decoder, PROMPT, decoder.new_cache())
    assert (done.strategy, done.exact, done.note, done.extend) == ("kv-prediction", False, "", None)
    assert mx.allclose(done.logits, exact.logits, atol=1e-3)
    predicted, cache = reply(decoder, strategy)
    expected, reference = reply(decoder, Exact(rows))
    assert predicted == expected
    assert cache.next_position == reference.next_position
    for layer, slot in cache.slots.items():
        assert slot.positions.tolist() == reference.slots[layer].positions.tolist()


class Watch(Probe):
    def __init__(self) -> None:
        self.normed_rows: dict[int, mx.array] = {}
        self.seen: dict[int, Seen] = {}

    def normed(self, layer: int, rows: mx.array) -> None:
        self.normed_rows[layer] = rows

    def keys_values(self, layer: int, keys: mx.array, values: mx.array) -> None:
        self.seen[layer] = Seen(keys, values, self.normed_rows[layer])


@pytest.mark.parametrize("variant", ["afm", "gemma3", "openelm", "qwen3"])
def test_a_smaller_model_s_rows_are_mapped_and_then_normalised_and_rotated(
    decoders: dict[str, Decoder], variant: str
) -> None:
    """The reference: one pass of the auxiliary, and `Decoder.store` of the maps' output."""
    base, auxiliary = decoders[variant], layer_pruned(decoders["llama"], (0, 1))
    predictor = random_predictor(base, auxiliary)
    cache, reference, watch = base.new_cache(), base.new_cache(), Watch()
    done = KVPrediction(predictor, auxiliary, rows=16)(base, PROMPT, cache)
    context = mx.array([PROMPT.tokens[:-1]])
    auxiliary.run(auxiliary.embed(context), range(2), 0, auxiliary.new_cache(), probe=watch)
    for layer, source in enumerate(predictor.layer_map):
        if source is not None:
            base.store(layer, *predictor.predict(layer, watch.seen[source]), 0, reference)
    reference.next_position = 49
    logits = base.extend(mx.array([[PROMPT.tokens[-1]]]), reference)
    assert logits is not None
    assert mx.allclose(done.logits, logits[:, -1], atol=2e-3)
    assert done.work.layer_tokens == [1] * len(base.blocks)
    assert cache.next_position == 50
    assert all(slot.positions[-1] == 49 for slot in cache.slots.values())


def test_predictions_are_what_the_base_reads(decoders: dict[str, Decoder]) -> None:
    base, auxiliary = decoders["llama"], layer_pruned(decoders["llama"], (0, 1))
    one, other = (random_predictor(base, auxiliary, seed=seed) for seed in (0, 1))
    logits = [KVPrediction(each, auxiliary)(base, PROMPT, base.new_cache()).logits for each in (one, other)]
    assert not mx.allclose(*logits, atol=1e-2)


def test_layers_of_the_base_can_be_the_auxiliary(decoders: dict[str, Decoder]) -> None:
    base = decoders["llama"]
    whole = Predictor.identity(base)
    kept = (0, 2)
    layers = layer_map(base.config, kept)
    assert layers == (0, 0, 1)
    pruned = replace(whole, auxiliary=kept, layer_map=layers)
    done = KVPrediction(pruned)(base, PROMPT, base.new_cache())
    assert done.strategy == "kv-prediction"
    view = layer_pruned(base, kept)
    explicit = KVPrediction(pruned, view)(base, PROMPT, base.new_cache())
    assert mx.array_equal(done.logits, explicit.logits)


def test_the_auxiliary_stops_at_the_last_layer_that_is_read(
    decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, ran = decoders["afm"], []
    run = Decoder.run

    def watch(self: Decoder, h: mx.array, layers: range, *rest: Any, **named: Any) -> mx.array:
        ran.append((h.shape[1], layers))
        return run(self, h, layers, *rest, **named)

    strategy = KVPrediction(Predictor.identity(base), rows=32)
    strategy.prepare(base)
    monkeypatch.setattr(Decoder, "run", watch)
    strategy(base, PROMPT, base.new_cache())
    # The auxiliary's chunks, and the base's last token, first up to the last writing layer and then on.
    assert ran == [(32, range(3)), (17, range(3)), (1, range(3)), (1, range(3, 5))]


@pytest.fixture
def folder(decoders: dict[str, Decoder], tmp_path: Path) -> Path:
    """A predictor's folder that holds its auxiliary, the tiny llama, for the tiny OpenELM."""
    save_predictor(random_predictor(decoders["openelm"], decoders["llama"]), tmp_path / "p")
    shutil.copytree(GOLDEN / "llama", tmp_path / "p" / "small")
    return tmp_path / "p"


def test_a_folder_brings_its_auxiliary(decoders: dict[str, Decoder], folder: Path) -> None:
    base = decoders["openelm"]
    found = KVPrediction(folder)(base, PROMPT, base.new_cache())
    given = KVPrediction(folder, decoders["llama"])(base, PROMPT, base.new_cache())
    named = KVPrediction(str(folder), GOLDEN / "llama")(base, PROMPT, base.new_cache())
    assert mx.array_equal(found.logits, given.logits) and mx.array_equal(named.logits, given.logits)


def test_an_auxiliary_that_is_nowhere_must_be_named(decoders: dict[str, Decoder], folder: Path) -> None:
    shutil.rmtree(folder / "small")
    base = decoders["openelm"]
    with pytest.raises(PredictorError, match="trained with small, which is neither in its folder nor in the catalog"):
        KVPrediction(folder)(base, PROMPT, base.new_cache())


def test_another_base_is_refused(decoders: dict[str, Decoder], folder: Path) -> None:
    for variant, difference in (("llama", "key heads of other sizes"), ("afm", "5 layers, not 3")):
        base = decoders[variant]
        cache = base.new_cache()
        with pytest.raises(PredictorError, match=f"The base model has {difference}"):
            KVPrediction(folder)(base, PROMPT, cache)
        assert cache.next_position == 0 and not cache.arrays()


def test_another_auxiliary_is_refused(decoders: dict[str, Decoder], folder: Path) -> None:
    base = decoders["openelm"]
    with pytest.raises(PredictorError, match=r"The auxiliary model has other weights; use the one .* made with"):
        KVPrediction(folder, decoders["llama-tied"])(base, PROMPT, base.new_cache())
    with pytest.raises(PredictorError, match="leave the auxiliary out"):
        KVPrediction(Predictor.identity(base), decoders["llama"])(base, PROMPT, base.new_cache())


def test_weights_that_are_nearly_the_same_are_told(
    decoders: dict[str, Decoder], caplog: pytest.LogCaptureFixture
) -> None:
    base = decoders["llama"]
    predictor = Predictor.identity(base)
    noise = np.random.default_rng(0).normal(size=predictor.base.sample[0].shape).astype(np.float32)
    near = predictor.base.sample[0] * (1 + 0.1 * noise)
    strategy = KVPrediction(replace(predictor, base=replace(predictor.base, sample=(near, predictor.base.sample[1]))))
    with caplog.at_level(logging.WARNING, "russet"):
        for _ in range(2):
            strategy(base, PROMPT, base.new_cache())
    assert [record.getMessage() for record in caplog.records] == [
        "the base model's weights are close to those that the predictor was made with, not equal: another number "
        "format, or a fine-tuned model"
    ]


class Foreign:
    """A model that is not ours: exact prefill's call is all it has."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None:
        return self.decoder.extend(tokens, cache, logits)


def test_what_it_does_not_apply_to_is_exact_with_a_note(decoders: dict[str, Decoder]) -> None:
    base = decoders["openelm"]
    predictor = Predictor.identity(base)
    short = layer_pruned(decoders["llama"], range(3))
    short.config = replace(short.config, max_positions=20)
    filled = base.new_cache()
    base.extend(mx.array([[1, 2, 3]]), filled, logits=0)
    cases = [
        (KVPrediction(predictor), Foreign(base), PROMPT, base.new_cache(), "own architectures"),
        (KVPrediction(predictor), base, PromptTokens([5]), base.new_cache(), "prompt of one token"),
        (KVPrediction(predictor), base, PROMPT, filled, "has not seen the 3 tokens"),
        (KVPrediction(random_predictor(base, short), short), base, PROMPT, base.new_cache(), "takes 20 tokens"),
    ]
    for strategy, model, prompt, cache, reason in cases:
        done = strategy(model, prompt, cache)
        assert (done.exact, done.strategy) == (True, "exact")
        assert reason in done.note and done.note.endswith("computed exactly.")


def test_the_folder_is_checked_when_it_is_named(folder: Path) -> None:
    described = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps({**described, "layer_map": [0, 0]}))
    with pytest.raises(PredictorError, match="has 2 entries, but its base 3 layers"):
        KVPrediction(folder)


def test_a_reply_says_that_rows_were_predicted(tiny_model: Any) -> None:
    strategy = russet.KVPrediction(Predictor.identity(tiny_model.decoder))
    done = tiny_model.generate("What is this?", prefill=strategy, max_tokens=8)
    assert (done.strategy, done.exact, done.note) == ("kv-prediction", False, "")
    # The auxiliary is the whole base, whose last layer has to give keys and values only.
    assert done.layer_tokens == (done.prompt_tokens, done.prompt_tokens, 1)
    assert done.tokens == tiny_model.generate("What is this?", max_tokens=8).tokens


def test_the_auxiliary_is_loaded_before_the_wait_for_the_first_token(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for a reply, a turn or nothing yet: `load_s` counts the loading, and no TTFT does."""
    predictor = random_predictor(tiny_model.decoder, tiny_model.decoder)
    save_predictor(predictor, tmp_path / "p")
    shutil.copytree(tiny_model.path, tmp_path / "p" / "small")
    loaded: list[Path] = []

    def slow(folder: Path) -> Decoder:
        loaded.append(folder)
        return load_decoder(folder)

    monkeypatch.setattr("russet.engine.prefill.kv_prediction.load_decoder", slow)
    monkeypatch.setattr("russet.engine.api.now", lambda: 5.0 * len(loaded))
    before = tiny_model.load_s
    pieces = tiny_model.stream("What is this?", prefill=KVPrediction(tmp_path / "p"), max_tokens=2)
    assert loaded == [tmp_path / "p" / "small"] and tiny_model.load_s == before + 5
    *_, last = pieces
    assert last.reply.strategy == "kv-prediction" and last.reply.timings.load_s == tiny_model.load_s
    tiny_model.session(prefill=KVPrediction(tmp_path / "p"))
    assert len(loaded) == 2
    tiny_model.load_s = before


def test_what_cannot_be_predicted_needs_no_auxiliary(decoders: dict[str, Decoder]) -> None:
    KVPrediction(Predictor.identity(decoders["llama"])).prepare(Foreign(decoders["llama"]))
