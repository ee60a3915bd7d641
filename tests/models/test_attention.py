"""The CPU's way of softmax attention beside MLX's own operation, and layers with sigmoid attention."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.errors import UnsupportedModelError
from russet.models.attention import BLOCK, for_cpu, fused
from russet.models.decoder import Decoder
from russet.models.families import read_decoder
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("rows", [1, 2, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("cached", [0, 1, 70])
def test_equals_mlx(heads: tuple[int, int], rows: int, cached: int) -> None:
    mx.random.seed(rows + cached)
    queries = mx.random.normal((2, heads[0], rows, 16))
    keys, values = (mx.random.normal((2, heads[1], rows + cached, 16)) for _ in range(2))
    mask = "causal" if rows > 1 else None
    ours, theirs = (np.array(attend(queries, keys, values, 0.3, mask)) for attend in (for_cpu, fused))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2e-6


@pytest.mark.parametrize("rows", [1, 5])
def test_obeys_a_mask_of_booleans(rows: int) -> None:
    queries, keys, values = (mx.random.normal((1, 2, n, 8)) for n in (rows, 7, 7))
    mask = mx.array(np.arange(7)[None, :] % 2 == np.arange(rows)[:, None] % 2)  # type: ignore[arg-type]
    ours, theirs = (np.array(attend(queries, keys, values, 1.0, mask)) for attend in (for_cpu, fused))
    assert np.abs(ours - theirs).max() < 2e-6
    assert np.abs(ours - np.array(for_cpu(queries, keys, values, 1.0, None))).max() > 0.01


def altered(folder: Path, variant: str, **keys: object) -> Path:
    """A golden folder with other keys in its configuration."""
    shutil.copytree(GOLDEN / variant, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def logits(decoder: Decoder, tokens: list[int], chunk: int) -> np.ndarray:
    """Of every token, with `chunk` of them going in at once."""
    cache = decoder.new_cache()
    parts = [mx.array([tokens[i : i + chunk]]) for i in range(0, len(tokens), chunk)]
    return np.concatenate([np.array(decoder.extend(part, cache, part.shape[1])) for part in parts], axis=1)


@pytest.mark.parametrize("bias", [None, -2.0, "visible"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3"])
def test_sigmoid_layers_give_the_same_logits_token_by_token(tmp_path: Path, variant: str, bias: object) -> None:
    decoder = load_decoder(altered(tmp_path / "m", variant, attention_kind="sigmoid", sigmoid_bias=bias))
    tokens = [3 + 5 * i % 60 for i in range(21)]
    whole, *others = (logits(decoder, tokens, chunk) for chunk in (21, 8, 1))
    for other in others:
        assert np.abs(whole - other).max() < 1e-5
    assert np.abs(whole - logits(load_decoder(GOLDEN / variant), tokens, 21)).max() > 0.01


def test_a_window_hides_keys_from_sigmoid_layers(tmp_path: Path) -> None:
    seen = []
    for window in (4, 12):
        keys = {"attention_kind": "sigmoid", "sliding_window": window}
        decoder = load_decoder(altered(tmp_path / str(window), "mistral", **keys))
        seen.append(logits(decoder, list(range(5, 17)), 12))
    assert np.abs(seen[0][:, :4] - seen[1][:, :4]).max() < 1e-5
    assert np.abs(seen[0][:, 4:] - seen[1][:, 4:]).max() > 1e-3


@pytest.mark.parametrize(
    ("keys", "bias"),
    [({}, -math.log(64)), ({"sigmoid_bias": -3}, -3.0), ({"sigmoid_bias": "visible"}, None)],
)
def test_sigmoid_bias_comes_from_the_configuration(keys: dict, bias: float | None) -> None:
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    for layer in read_decoder({**config, "attention_kind": "sigmoid", **keys}).layers:
        assert (layer.attention, layer.sigmoid_bias) == ("sigmoid", bias)
    assert {layer.attention for layer in read_decoder(config).layers} == {"softmax"}


@pytest.mark.parametrize(
    ("variant", "keys", "message"),
    [
        ("llama", {"attention_kind": "linear"}, "attention_kind = 'linear'"),
        ("llama", {"attention_kind": "sigmoid", "sigmoid_bias": "n"}, "a number or 'visible' is expected"),
        ("llama", {"attention_kind": "sigmoid", "sigmoid_bias": math.inf}, "a number or 'visible' is expected"),
        ("gemma3", {"attention_kind": "sigmoid"}, "attention_kind 'sigmoid'; this family is implemented for softmax"),
    ],
)
def test_other_kinds_of_attention_are_refused(variant: str, keys: dict, message: str) -> None:
    config = json.loads((GOLDEN / variant / "config.json").read_text())
    with pytest.raises(UnsupportedModelError, match=message):
        read_decoder({**config, **keys})
