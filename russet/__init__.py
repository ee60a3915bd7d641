"""Russet: on-device language models on Apple silicon, with the shortest honest wait for the first token.

    import russet
    model = russet.load("smollm2-135m")
    print(model.generate("Why is the sky blue?", max_tokens=80).text)

Names are resolved on first use, so that `import russet` itself loads neither MLX nor a model.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "linux":
    # MLX's CUDA graphs hold the memory of all their operations, and the GPU waits for a whole one to be built: 100 of
    # them unless told otherwise. docs/benchmarks.md has the figures.
    os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "60")

if TYPE_CHECKING:
    from russet.engine.api import Model, load
    from russet.engine.errors import RussetError
    from russet.engine.options import GenerationOptions
    from russet.engine.prefill.document_cache import DocumentCache
    from russet.engine.prefill.kv_prediction import KVPrediction
    from russet.engine.prefill.lazyllm import LazyLLM
    from russet.engine.prefill.specprefill import SpecPrefill
    from russet.engine.prefill.superposition import Superposition
    from russet.engine.prompt import Prompt
    from russet.engine.reply import Piece, Reply
    from russet.engine.session import Session
    from russet.engine.timing import Timings

__version__ = "0.1.0"

_HOMES = {
    "load": "russet.engine.api",
    "Model": "russet.engine.api",
    "Session": "russet.engine.session",
    "SpecPrefill": "russet.engine.prefill.specprefill",
    "GenerationOptions": "russet.engine.options",
    "KVPrediction": "russet.engine.prefill.kv_prediction",
    "LazyLLM": "russet.engine.prefill.lazyllm",
    "Prompt": "russet.engine.prompt",
    "Superposition": "russet.engine.prefill.superposition",
    "DocumentCache": "russet.engine.prefill.document_cache",
    "Reply": "russet.engine.reply",
    "Piece": "russet.engine.reply",
    "Timings": "russet.engine.timing",
    "RussetError": "russet.engine.errors",
}

__all__ = [
    "DocumentCache",
    "GenerationOptions",
    "KVPrediction",
    "LazyLLM",
    "Model",
    "Piece",
    "Prompt",
    "Reply",
    "RussetError",
    "Session",
    "SpecPrefill",
    "Superposition",
    "Timings",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'russet' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
