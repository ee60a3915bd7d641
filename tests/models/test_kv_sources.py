"""Layers that read the rows of several earlier layers, by turns, in whatever goes over the layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.cache import KVCache
from russet.engine.prefill.base import PromptTokens, Segments
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.identity import Identity
from russet.engine.prefill.importance import LastRow
from russet.engine.prefill.kv_prediction import KVPrediction
from russet.engine.prefill.lazyllm import LazyLLM
from russet.engine.prefill.predictor import Predictor, expected_shapes, layer_map
from russet.engine.prefill.pruning import Staged
from russet.engine.prefill.specprefill import SpecPrefill
from russet.engine.prefill.superposition import Superposition
from russet.engine.rows import RING
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned, spread_layers
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = [None, None, None, 2, 1, 0, 2]
TOKENS = np.random.default_rng(7).integers(0, 72, 120).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven layers: the golden model's three over and over, without `k_proj` and `v_proj` in those that read."""
    folder = tmp_path_factory.mktemp("turns")
    shutil.copytree(GOLDEN / "llama", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": len(SOURCES), "max_position_embeddings": 256, "russet": {"kv_source": SOURCES}}
    (folder / "config.json").write_text(json.dumps(config))
    stored = mx.load(str(folder / "model.safetensors"))
    assert isinstance(stored, dict)
    tensors = {name: array for name, array in stored.items() if ".layers." not in name}
    for i, source in enumerate(SOURCES):
        for name, array in stored.items():
            if f".layers.{i % 3}." in name and (
                source is None or not any(part in name for part in ("k_proj", "v_proj"))
            ):
                tensors[name.replace(f".layers.{i % 3}.", f".layers.{i}.")] = array
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return folder


@pytest.fixture
def decoder(folder: Path) -> Decoder:
    return load_decoder(folder, "float32")


def logits_of(decoder: Decoder, tokens: list[int], cache: KVCache | None = None) -> np.ndarray:
    """The last token's logits, all tokens in one pass through every layer."""
    cache = cache or decoder.new_cache()
    h = decoder.run(decoder.embed(mx.array([tokens])), range(len(decoder.blocks)), 0, cache)
    return np.array(decoder.head(h[:, -1:])[0, -1])


def test_the_cache_has_one_slot_a_writer_and_every_reader_its_own_source(decoder: Decoder) -> None:
    cache = decoder.new_cache()
    assert sorted(cache.slots) == [0, 1, 2]
    assert [cache.slot(layer) for layer in (3, 4, 5, 6)] == [cache.slots[layer] for layer in (2, 1, 0, 2)]


def test_exact_prefill_stops_most_rows_at_the_last_writer_and_changes_nothing(decoder: Decoder) -> None:
    ours = Exact(16)(decoder, PromptTokens(TOKENS), decoder.new_cache()).logits
    assert np.allclose(np.array(ours)[0], logits_of(decoder, TOKENS), atol=1e-5)


def test_each_source_counts(folder: Path, decoder: Decoder, tmp_path: Path) -> None:
    """A reader that is sent elsewhere says something else."""
    before = logits_of(decoder, TOKENS)
    for reader in (3, 4, 5, 6):
        other = shutil.copytree(folder, tmp_path / str(reader))
        config = json.loads((other / "config.json").read_text())
        config["russet"]["kv_source"][reader] = 1 if SOURCES[reader] != 1 else 0
        (other / "config.json").write_text(json.dumps(config))
        assert not np.allclose(logits_of(load_decoder(other, "float32"), TOKENS), before, atol=1e-3)


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_the_fused_step_reads_the_same_rows(folder: Path, kv_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("russet.kernels.base", "russet.models.fused", "russet.models.loading"):
        monkeypatch.setattr(f"{module}.mode", lambda: "reference")
    fused, plain = load_decoder(folder, "float32"), load_decoder(folder, "float32")
    plain._step_made = True
    said = []
    for each in (fused, plain):
        cache = each.new_cache(kv_bits)
        each.extend(mx.array([TOKENS[:20]]), cache)
        steps = [each.extend(mx.array([[token]]), cache) for token in TOKENS[20 : 28 + RING]]
        said.append(np.array(mx.stack([logits.reshape(-1) for logits in steps if logits is not None])))
    assert fused._step is not None
    assert np.abs(said[0] - said[1]).max() < 2e-5 * max(1, np.abs(said[1]).max())


def test_lazyllm_that_revives_everything_is_exact(decoder: Decoder) -> None:
    """Readers of an early layer see rows that a later layer's slot has not."""
    cache, exact = decoder.new_cache(), decoder.new_cache()
    lazy = LazyLLM(schedule=Staged({0.7: 0.4}), scorer=LastRow(), revive=len(TOKENS))
    prefilled = lazy(decoder, PromptTokens(TOKENS), cache)
    assert cache.slots[2].rows.length < cache.slots[0].rows.length == len(TOKENS)
    assert prefilled.extend is not None
    prefilled.extend._plan = {2: len(TOKENS)}  # type: ignore[attr-defined]
    decoder.extend(mx.array([TOKENS]), exact)
    ours, theirs = prefilled.extend(mx.array([[3]]), cache), decoder.extend(mx.array([[3]]), exact)
    assert ours is not None and theirs is not None and np.allclose(ours, theirs, atol=1e-5)


def test_specprefill_that_keeps_everything_is_exact(decoder: Decoder) -> None:
    kept = SpecPrefill(keep=1.0, rows=256)(decoder, PromptTokens(TOKENS), decoder.new_cache()).logits
    assert np.allclose(np.array(kept)[0], logits_of(decoder, TOKENS), atol=1e-5)


def test_superposition_of_one_document_is_exact(decoder: Decoder) -> None:
    parts = Segments(tuple(TOKENS[:10]), (tuple(TOKENS[10:40]),), tuple(TOKENS[40:45]), tuple(TOKENS[45:50]))
    one = Superposition(1)(decoder, PromptTokens(TOKENS[:50], 1, parts), decoder.new_cache()).logits
    assert np.allclose(np.array(one)[0], logits_of(decoder, TOKENS[:50]), atol=1e-4)


def test_kv_prediction_with_every_token_real_is_exact(decoder: Decoder) -> None:
    known, kept = Identity.of(decoder), (0, 1)
    feeding = layer_map(decoder.config, kept)
    wanted = [None if i in kept else source for i, source in enumerate(feeding)]
    shapes = expected_shapes(wanted, known.keys_values, known.keys_values[:2], known.hidden_dim)
    weights = {name: mx.ones(shape) for name, shape in shapes.items()}
    predictor = Predictor(known, kept, feeding, weights, "normed", kept)
    strategy = KVPrediction(predictor, rows=16, keep=1.0, scorer=LastRow())
    predicted = strategy(decoder, PromptTokens(TOKENS[:50], tail=5), decoder.new_cache()).logits
    assert np.allclose(np.array(predicted)[0], logits_of(decoder, TOKENS[:50]), atol=1e-4)


def test_a_view_of_some_layers_keeps_what_they_read(decoder: Decoder) -> None:
    layers = spread_layers(decoder.config, 0.5)
    assert layers == (0, 1, 2, 4, 6)
    assert [spec.kv_source for spec in layer_pruned(decoder, layers).config.layers] == [None, None, None, 1, 2]
