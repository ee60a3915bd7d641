"""The model card that is shown at load: what was loaded, and what serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from russet.models.config_file import read_config
from russet.models.families import family_of
from russet.models.runtimes.base import runtime_of
from russet.models.shapes import parameter_count

if TYPE_CHECKING:
    from russet.engine.api import Model


def describe(model: Model) -> str:
    """One paragraph: architecture, size, number format, context, cache, and the fallback where it serves."""
    raw = read_config(model.files)
    if model.config is None:
        return (
            f"{model.name}: {raw.get('model_type')} through {runtime_of(model.decoder)} (exact prefill only; Russet's "
            f"own techniques need one of its own architectures in MLX), context {model.max_positions:,} tokens"
        )
    config = model.config
    count = parameter_count(config, family_of(raw).names(config))
    dtype = str(getattr(model.decoder, "dtype", "")).removeprefix("mlx.core.")
    per_token = model.decoder.new_cache(model.kv_bits).bytes_per_position
    bits = (raw.get("quantization") or {}).get("bits")
    stored = f"{bits}-bit weights, " if bits else ""
    return (
        f"{model.name}: {config.family}, {count / 1e6:,.0f} M parameters, {stored}computing in {dtype}; "
        f"context {config.max_positions:,} tokens, KV cache {per_token / 1024:,.1f} KiB a token"
    )
