"""Weights that come with the repository: small, described, and whole."""

from __future__ import annotations

import pytest

from russet.engine.prefill.predictor_folder import load_predictor
from russet.models.catalog import CATALOG, PREDICTORS, ShippedSource
from russet.models.config_file import read_config
from russet.models.families import read_decoder
from russet.models.safetensors_file import open_safetensors
from russet.models.shipped import WEIGHTS, shipped
from russet.models.weights import BALANCED

LIMIT = 64 << 20
FOLDERS = sorted(path for path in WEIGHTS.iterdir() if path.is_dir())


def test_all_of_them_together_are_small() -> None:
    assert 0 < sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= LIMIT


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_has_a_name_and_a_card_with_its_command(folder) -> None:
    models = {
        source.folder for entry in CATALOG.values() for source in entry.sources if isinstance(source, ShippedSource)
    }
    assert folder.name in models | PREDICTORS.keys()
    assert "russet recipe" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "recipe.json").exists() and (folder / "curve.csv").exists()


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_can_be_read(name: str) -> None:
    folder = shipped(name)
    assert folder is not None
    predictor = load_predictor(folder)
    assert predictor.weights and len(predictor.layer_map) == len(predictor.base.keys_values)


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if shipped(name)])
def test_a_model_s_configuration_can_be_read(name: str) -> None:
    folder = shipped(name)
    assert folder is not None and read_decoder(read_config(folder)).family == CATALOG[name].family


def test_the_combined_model_is_what_its_card_says() -> None:
    """Two bits, ReLU gates, and the last 11 layers reading layer 18; the weights are not loaded."""
    folder = shipped("russet-135m")
    assert folder is not None
    raw = read_config(folder)
    config = read_decoder(raw)
    assert raw["quantization"]["bits"] == 2 and raw["quantization"]["mode"] == BALANCED
    assert {layer.activation for layer in config.layers} == {"relu"}
    assert [layer.kv_source for layer in config.layers] == [None] * 19 + [18] * 11
    tensors = open_safetensors(folder / "model.safetensors").tensors
    assert "model.layers.18.self_attn.k_proj.weight" in tensors
    assert "model.layers.19.self_attn.k_proj.weight" not in tensors
