"""Check a source against what its configuration promises, before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from russet.converters.base import Source
from russet.engine.errors import UnsupportedModelError, WeightsError
from russet.models.config import DecoderConfig
from russet.models.families import FAMILIES, family_of, read_decoder
from russet.models.shapes import Shape, expected_shapes


def check_source(source: Source) -> None:
    """Every tensor of the family is there with the right shape, and nothing else is.

    Raises UnsupportedModelError for an unknown architecture, WeightsError for tensors that do not fit.
    """
    expected = _expected(decoder_config(source.config), source.config)
    found = {tensor.name: tensor.shape for tensor in source.tensors}
    for name, shape in expected.items():
        if name not in found:
            raise WeightsError(f"The checkpoint lacks the tensor {name!r}, which its configuration asks for.")
        if found[name] != shape:
            raise WeightsError(f"The tensor {name!r} has shape {found[name]}; the configuration asks for {shape}.")
    extra = [name for name in found if name not in expected]
    if extra:
        raise WeightsError(
            f"The checkpoint holds {len(extra)} tensors that a {source.config['model_type']} model has no place for, "
            f"such as {extra[0]!r}."
        )


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """The family's reading of config.json; an architecture of mlx-lm's alone is refused with a word on what to do."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES and _mlx_lm_has(model_type):
        raise UnsupportedModelError(
            f"Russet has no converter for {model_type!r} (it has {', '.join(sorted(FAMILIES))}), but runs it through "
            "mlx-lm: load the folder as it is, or quantise it with mlx_lm.convert."
        )
    return read_decoder(config)


def _mlx_lm_has(model_type: Any) -> bool:
    package = importlib.util.find_spec("mlx_lm")
    if package is None or not package.submodule_search_locations or not str(model_type).isidentifier():
        return False
    return any((Path(place) / "models" / f"{model_type}.py").is_file() for place in package.submodule_search_locations)


def _expected(decoder: DecoderConfig, config: dict[str, Any]) -> dict[str, Shape]:
    """Stock tensor name -> shape."""
    shapes = expected_shapes(decoder)
    expected: dict[str, Shape] = {}
    for role, name in family_of(config).names(decoder).items():
        part = role.rpartition(".")[2]
        if part in ("k_scale", "v_scale"):
            expected[name] = shapes[role]
            continue
        expected[f"{name}.weight"] = shapes[role]
        if has_bias(decoder, part):
            expected[f"{name}.bias"] = shapes[role][:1]
    return expected


def has_bias(decoder: DecoderConfig, part: str) -> bool:
    """Whether a linear map of every layer, by the last part of its role, has a bias."""
    return (
        (decoder.qkv_bias and part in ("q", "k", "v", "qkv"))
        or (decoder.out_bias and part == "o")
        or (decoder.ffn_bias and part in ("gate", "up", "gate_up", "down"))
    )
