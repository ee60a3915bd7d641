"""The traced decoder computes what the loaded one computes."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes.forward import decoder_of, head_of, hidden_rows
from russet.converters.recipes.source import open_source
from russet.engine.errors import UnsupportedModelError
from russet.models.loading import load_decoder


def variant(folder: Path, tmp_path: Path, **changes: object) -> Path:
    copy = tmp_path / "variant"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return copy


CHANGES = [
    {},
    {"hidden_act": "relu", "russet": {"relu_shift": 0.05}},
    {"hidden_act": "relu", "russet": {"relu_norms": True}},
    {"russet": {"kv_source": [None, None, 1]}},
    {"model_type": "mistral", "sliding_window": 5},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_it_equals_the_loaded_decoder(source_folder: Path, tmp_path: Path, changes: dict) -> None:
    folder = variant(source_folder, tmp_path, **changes)
    source, loaded = open_source(folder), load_decoder(folder)
    tokens = mx.random.randint(0, source.config.vocab_size, (1, 12), key=mx.random.key(1))
    wanted = loaded.extend(tokens, loaded.new_cache(), logits=12)
    decoder = decoder_of(source.config, source.weights, mx.float32)
    rows = hidden_rows(decoder, tokens, keep=True)
    assert wanted is not None and len(rows.layers) == len(source.config.layers)
    np.testing.assert_allclose(np.array(rows.final @ head_of(decoder).T), np.array(wanted), atol=2e-5)


def test_a_change_is_felt(source_folder: Path, tmp_path: Path) -> None:
    tokens = mx.arange(8)[None]
    plain = open_source(source_folder)
    before = hidden_rows(decoder_of(plain.config, plain.weights, mx.float32), tokens).final
    for i, changes in enumerate(CHANGES[1:4]):
        (tmp_path / str(i)).mkdir()
        changed = open_source(variant(source_folder, tmp_path / str(i), **changes))
        after = hidden_rows(decoder_of(changed.config, changed.weights, mx.float32), tokens).final
        assert not mx.allclose(before, after, atol=1e-3)


def test_a_gradient_reaches_every_weight(source_folder: Path) -> None:
    source = open_source(source_folder)
    tokens = mx.arange(12)[None]

    def loss(weights: dict[str, mx.array]) -> mx.array:
        decoder = decoder_of(source.config, weights, mx.float32)
        return mx.square(hidden_rows(decoder, tokens).final @ head_of(decoder).T).mean()

    gradients = mx.grad(loss)(source.weights)
    assert all(bool(mx.any(gradient != 0)) for gradient in gradients.values())


def test_a_sparsified_folder_is_refused(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="russet sparsify"):
        open_source(variant(source_folder, tmp_path, ffn_thresholds=[0.1, 0.1, 0.1]))
