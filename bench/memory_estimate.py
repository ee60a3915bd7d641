"""How much memory a benchmark will take, told before a model is loaded: a machine that swaps measures its disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.engine.errors import InsufficientMemoryError
from russet.engine.storage import readable_bytes


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of the weights, of the keys and values of the longest run, of what a chunk computes, and of peers' weights.

    What another program's runtime takes beside the weights is not known and counts as 0.
    """

    weights: int
    cache: int
    working: int
    peers: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working + self.peers


def estimate(folder: Path, tokens: int, dtype: str | None, peers: int = 0) -> MemoryEstimate:
    """What a model's run of `tokens` positions takes, beside `peers` engines in the process with the same weights."""
    from russet.engine.device import on_gpu
    from russet.models.config_file import read_config
    from russet.models.families import FAMILIES
    from russet.models.opening import description_folder
    from russet.models.runtimes import package_suffix

    raw = read_config(description_folder(folder))
    packaged = package_suffix(folder) is not None
    stored = sum(file.stat().st_size for file in folder.rglob("*" if packaged else "*.safetensors") if file.is_file())
    if packaged or raw.get("model_type") not in FAMILIES:
        return MemoryEstimate(stored, 0, 0, peers * stored)
    # A GPU takes weights as they are stored, unless dense ones are cast.
    as_stored = on_gpu() and (dtype is None or "quantization" in raw)
    weights = stored if as_stored else _dense_bytes(raw, dtype)
    return MemoryEstimate(weights, *_run_bytes(raw, tokens, dtype), peers * weights)


def _dense_bytes(raw: dict[str, Any], dtype: str | None) -> int:
    """Weights in the type that is computed in, as a CPU expands packed ones to when it loads them."""
    from russet.models.families import family_of, read_decoder
    from russet.models.shapes import parameter_count

    config = read_decoder(raw)
    return parameter_count(config, family_of(raw).names(config)) * _number(dtype).size


def _run_bytes(raw: dict[str, Any], tokens: int, dtype: str | None) -> tuple[int, int]:
    """Cache, and what a chunk of the prompt needs beside it: inputs and outputs of the widest maps, and logits.

    On a CPU attention writes out its weights, twice where they are normalised.
    """
    from russet.engine.cache import KVCache
    from russet.engine.device import on_gpu, prefill_chunk
    from russet.models.families import read_decoder

    config, number = read_decoder(raw), _number(dtype)
    rows = min(tokens, prefill_chunk(packed="quantization" in raw))
    widest = max(2 * layer.ffn_dim + 2 * layer.heads * layer.head_dim for layer in config.layers)
    working = rows * (widest + 4 * config.hidden_dim) * number.size + 4 * config.vocab_size
    if not on_gpu():
        working += 2 * max(layer.heads for layer in config.layers) * rows * tokens * number.size
    return tokens * KVCache(config, number).bytes_per_position, working


def _number(dtype: str | None) -> Any:
    """The type that is computed in; a GPU's default has 16 bits in every checkpoint that is made to be run."""
    import mlx.core as mx

    from russet.engine.device import on_gpu
    from russet.models.loading import DTYPES

    return DTYPES[dtype] if dtype else (mx.float16 if on_gpu() else mx.float32)


def available_bytes() -> int:
    """Memory that can be had: what a GPU has for models, or what Linux says is left; else all of the machine's."""
    from russet.engine.device import memory_bytes, on_gpu

    meminfo = Path("/proc/meminfo")
    if not on_gpu() and meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return memory_bytes()


def check_memory(name: str, needed: MemoryEstimate, available: int) -> None:
    """Raise InsufficientMemoryError, with the estimate, where it is more than there is."""
    if needed.total > available:
        parts = [f"{readable_bytes(needed.weights)} of weights", f"{readable_bytes(needed.cache)} of KV cache"]
        if needed.peers:
            parts.append(f"{readable_bytes(needed.peers)} for peers")
        raise InsufficientMemoryError(
            f"{name} would take about {readable_bytes(needed.total)} ({', '.join(parts)}) and "
            f"{readable_bytes(available)} are available; choose a smaller model, shorter prompts or fewer peers."
        )
