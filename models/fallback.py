"""Any architecture that Russet has no family for, through mlx-lm's implementation: exact prefill only."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model

from russet.engine.blas import use_fast_blas
from russet.engine.device import on_gpu
from russet.engine.errors import UnsupportedModelError, WeightsError
from russet.models.families.base import layer_count
from russet.models.loading import DTYPES
from russet.models.runtimes.base import ForeignDecoder
from russet.models.weights import check_shards

logger = logging.getLogger("russet")


class MlxLmCache:
    """mlx-lm's caches with the face that the engine expects of a cache."""

    kv_bits = 16

    def __init__(self, caches: list[Any]) -> None:
        self.caches = caches
        self.next_position = 0

    def reserve(self, rows: int) -> None:
        """mlx-lm's caches grow by themselves."""

    def trim(self, length: int) -> bool:
        surplus = self.next_position - length
        if surplus and (not can_trim_prompt_cache(self.caches) or trim_prompt_cache(self.caches, surplus) != surplus):
            return False
        self.next_position = length
        return True

    def arrays(self) -> list[mx.array]:
        return [cache.state for cache in self.caches]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)


class MlxLmDecoder(ForeignDecoder):
    """mlx-lm's model behind the calls that exact prefill and decoding make."""

    runtime = "mlx-lm"

    def __init__(self, model: Any, max_positions: int) -> None:
        self.model = model
        self.max_positions = max_positions

    def new_cache(self, kv_bits: int = 16) -> MlxLmCache:
        self.refuse_kv_bits(kv_bits)
        return MlxLmCache(make_prompt_cache(self.model))

    def extend(self, tokens: mx.array, cache: MlxLmCache, logits: int = 1) -> mx.array | None:
        try:
            out = self.model(tokens, cache=cache.caches)
        except Exception as error:  # what a configuration breaks in a foreign program, nobody can list
            raise WeightsError(f"mlx-lm could not run this model ({_reason(error)}); check its config.json.") from None
        cache.next_position += tokens.shape[1]
        return out[:, -logits:] if logits else None


def load_foreign(folder: Path, config: dict[str, Any], dtype: str | None) -> MlxLmDecoder:
    """Load through mlx-lm, without running code that a checkpoint brings; says that mlx-lm serves."""
    name = config.get("model_type")
    if not isinstance(name, str) or not name.isidentifier() or not importlib.util.find_spec(f"mlx_lm.models.{name}"):
        raise UnsupportedModelError(f"config.json has model_type {name!r}, which neither Russet nor mlx-lm implements.")
    check_shards(folder)
    use_fast_blas()
    if isinstance(config.get("num_hidden_layers"), int):
        layer_count(config, "num_hidden_layers")
    text = config.get("text_config")
    of_text = text.get("max_position_embeddings") if isinstance(text, dict) else None
    positions = config.get("max_position_embeddings") or of_text or 4096
    if not isinstance(positions, int) or isinstance(positions, bool) or positions < 1:
        raise UnsupportedModelError(
            f"config.json has max_position_embeddings = {positions!r}; a whole number above zero is expected."
        )
    try:
        model, _ = load_model(folder, lazy=False)
    except Exception as error:
        raise WeightsError(
            f"mlx-lm could not load {folder} as {name} ({_reason(error)}); check its config.json, or fetch it again."
        ) from None
    if dtype or not on_gpu():
        model.set_dtype(DTYPES[dtype or "float32"])
    logger.warning("%s runs through mlx-lm: exact prefill only, none of Russet's own techniques", name)
    return MlxLmDecoder(model, positions)


def _reason(error: Exception) -> str:
    """One line of bounded length, of errors that list every parameter of a model."""
    text = " ".join(str(error).split()).rstrip(".:") or type(error).__name__
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"


_MOST_QUOTED = 120
