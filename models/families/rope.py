"""Read the rotary embedding out of a `config.json`, in either spelling that public checkpoints use.

Older ones carry `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`, by attention kind where a
family has several.
"""

from __future__ import annotations

import math
from typing import Any

from russet.engine.errors import UnsupportedModelError
from russet.models.config import Rope, RopeScaling
from russet.models.families.base import Config


def read_rope(config: Config, dims: int, theta: float, kind: str | None = None) -> Rope:
    """The rotary embedding of a config; `theta` is the family's default, `kind` the attention kind to look up."""
    parameters = config.get("rope_parameters") or {}
    if kind is not None:
        parameters = parameters.get(kind) or {}
    # Where a config carries both, transformers follows the older key.
    scaling = config.get("rope_scaling") or parameters
    base = parameters.get("rope_theta", config.get("rope_theta", theta))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return Rope(dims=int(dims * partial), theta=float(base), scaling=read_scaling(config, scaling))


def read_scaling(config: Config, scaling: dict[str, Any]) -> RopeScaling | None:
    """`rope_scaling` as data, or None for plain rotary embedding.

    Raises `UnsupportedModelError` for a kind that is not implemented (dynamic, longrope, ...), naming it.
    """
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModelError(
            f"config.json asks for rope scaling {kind!r}; Russet implements linear, llama3 and yarn."
        )
    if "factor" not in scaling:
        raise UnsupportedModelError(f"config.json has {kind!r} rope scaling without the 'factor' it needs.")
    factor = float(scaling["factor"])
    trained = scaling.get("original_max_position_embeddings") or config.get("max_position_embeddings", 8192)
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor,
            original_length=int(trained),
            low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
            high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        )
    return RopeScaling(
        "yarn",
        factor,
        original_length=int(trained),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        attention_factor=_yarn_attention_factor(scaling, factor),
        truncate=bool(scaling.get("truncate", True)),
    )


def _yarn_attention_factor(scaling: dict[str, Any], factor: float) -> float:
    """YaRN's temperature: given outright, or 0.1 ln(factor) + 1, or the ratio of its two mscale settings."""

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)
