"""Decoders with layers left out: which ones, whose weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest

from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig, LayerSpec, Rope
from russet.models.decoder import Decoder
from russet.models.layer_pruned import first_layers, layer_pruned, spread_layers
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ["afm", "gemma3", "llama", "mistral", "openelm", "qwen2", "qwen3"]


def config(layers: int, sources: dict[int, int] | None = None) -> DecoderConfig:
    spec = LayerSpec(4, 2, 8, 32, Rope(8, 10000.0))
    specs = tuple(replace(spec, kv_source=(sources or {}).get(i)) for i in range(layers))
    return DecoderConfig("llama", 32, 72, specs, 64, 1e-5)


def last_logits(decoder: Decoder, tokens: list[int]) -> mx.array:
    logits = decoder.extend(mx.array([tokens]), decoder.new_cache())
    assert logits is not None
    return logits


def test_the_paper_s_patterns() -> None:
    of_28 = config(28)
    assert spread_layers(of_28, 0.75) == tuple(i for i in range(28) if i % 4 != 3)
    assert spread_layers(of_28, 0.5) == tuple(range(0, 28, 2))
    assert spread_layers(of_28, 0.25) == tuple(range(0, 28, 4))
    assert spread_layers(config(36), 0.25) == tuple(range(0, 36, 4))


@pytest.mark.parametrize("share", [0.1, 0.3, 1 / 3, 0.6, 0.9, 1.0])
def test_any_share_is_spread_evenly(share: float) -> None:
    kept = spread_layers(config(30), share)
    assert kept[0] == 0 and len(kept) == round(share * 30)
    gaps = {after - before for before, after in pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1


def test_the_first_layers() -> None:
    assert first_layers(config(30), 0.5) == tuple(range(15))
    assert first_layers(config(4), 0.01) == (0,)


def test_a_layer_that_others_read_is_kept_with_them() -> None:
    shared = config(8, {i: 3 for i in range(4, 8)})
    assert spread_layers(shared, 0.5) == (0, 2, 3, 4, 6)


@pytest.mark.parametrize("variant", FAMILIES)
def test_all_layers_are_the_model_itself(variant: str) -> None:
    decoder = load_decoder(GOLDEN / variant)
    whole = layer_pruned(decoder, range(len(decoder.blocks)))
    tokens = [3, 5, 8, 13, 21, 34]
    assert mx.array_equal(last_logits(decoder, tokens), last_logits(whole, tokens))


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_view_computes_the_kept_layers_only(variant: str) -> None:
    decoder = load_decoder(GOLDEN / variant)
    kept = (0, 2)
    view = layer_pruned(decoder, kept)
    tokens = mx.array([[3, 5, 8, 13, 21, 34]])
    cache = decoder.new_cache()
    h = decoder.embed(tokens)
    for layer in kept:
        h = decoder.run(h, range(layer, layer + 1), 0, cache)
    assert mx.allclose(last_logits(view, tokens[0].tolist()), decoder.head(h)[:, -1:], atol=1e-5)  # type: ignore[arg-type]
    assert sorted(view.new_cache().slots) == [0, 1]


def test_shared_keys_and_values_follow_their_layer() -> None:
    decoder = load_decoder(GOLDEN / "afm")
    view = layer_pruned(decoder, (1, 2, 4))
    assert [spec.kv_source for spec in view.config.layers] == [None, None, 1]
    assert view.config.last_writer == 1
    assert sorted(view.new_cache().slots) == [0, 1]
    assert mx.isfinite(last_logits(view, [3, 5, 8])).all()


def test_weights_are_shared_and_the_base_is_left_alone() -> None:
    decoder = load_decoder(GOLDEN / "llama")
    view = layer_pruned(decoder, (0, 2))
    assert [id(array) for array in view.blocks[1].arrays] == [id(array) for array in decoder.blocks[2].arrays]
    assert view.embed is decoder.embed
    assert [block.index for block in decoder.blocks] == [0, 1, 2]
    assert [block.index for block in view.blocks] == [0, 1]


@pytest.mark.parametrize("layers", [(), (2, 1), (0, 0), (-1, 0), (0, 3)])
def test_layers_that_are_none_are_refused(layers: tuple[int, ...]) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    with pytest.raises(InvalidOptionError, match="must be some of 0 to 2, in rising order"):
        layer_pruned(decoder, layers)


def test_a_reader_without_its_source_is_refused() -> None:
    decoder = load_decoder(GOLDEN / "afm")
    with pytest.raises(InvalidOptionError, match="Layer 3 reads the keys and values of layer 2"):
        layer_pruned(decoder, (0, 1, 3))


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(InvalidOptionError, match="above 0 and at most 1"):
        spread_layers(config(4), share)
    with pytest.raises(InvalidOptionError, match="above 0 and at most 1"):
        first_layers(config(4), share)
