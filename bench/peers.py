"""Other engines as contenders."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.bench.base import Measurement, measure
from russet.engine.errors import MissingDependencyError, PeerError

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx.nn import Module

MLX_LM, LLAMA_CPP = "mlx-lm", "llama.cpp"

PEERS = (MLX_LM, LLAMA_CPP)
"""What `--peer` of `russet bench ttft` takes; those of `IN_PROCESS` run on token ids as well."""

IN_PROCESS = (MLX_LM,)

LLAMA_BENCH = "llama-bench"


def require_peer(name: str) -> None:
    """Raise MissingDependencyError, which says what to install, unless a peer can be run."""
    if name == MLX_LM and importlib.util.find_spec("mlx_lm") is None:
        raise MissingDependencyError(
            f"{name} is not installed, so there is nothing to compare with; install russet[{name}] or leave out --peer."
        )
    if name == LLAMA_CPP and shutil.which(LLAMA_BENCH) is None:
        raise MissingDependencyError(
            f"{LLAMA_BENCH} of {name} is not on the PATH, so there is nothing to compare with; install it (on a Mac "
            f"with 'brew install llama.cpp') or leave out --peer {name}."
        )


class MlxLm:
    """mlx-lm's `generate_step` with its defaults, as `mlx_lm.generate` calls it."""

    name = "mlx-lm"

    def __init__(self, folder: Path, *, level: bool = True, dtype: str | None = None) -> None:
        """Load a folder; with `level`, to the weights that Russet computes with (see `level_weights`)."""
        import mlx.core as mx

        before = mx.get_active_memory()
        self.model = load_mlx_lm(folder)
        self.setting = level_weights(self.model, dtype) if level else "as installed"
        mx.eval(self.model.parameters())
        mx.clear_cache()
        self.weights_bytes = mx.get_active_memory() - before

    def run(self, tokens: Sequence[int], generate: int) -> Measurement:
        return measure(tokens, lambda ids: self.tokens(ids, generate), self.weights_bytes)

    def step_graph(self, tokens: int, steps: int) -> mx.array:
        """The logits of the step after `tokens` of a prompt and `steps` steps, not evaluated."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        mx.eval(self.model(mx.zeros((1, tokens), mx.int32), cache=cache))
        for _ in range(steps):
            mx.eval(self.model(mx.zeros((1, 1), mx.int32), cache=cache))
        return self.model(mx.zeros((1, 1), mx.int32), cache=cache)

    def tokens(self, tokens: Sequence[int], generate: int) -> Iterator[int]:
        """Exactly `generate` greedy tokens after a prompt."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step, generation_stream, wired_limit

        stream: Any = generation_stream  # a thread-local stream, which MLX's stubs take for another type
        with wired_limit(self.model, [stream]):
            for token, _ in generate_step(mx.array(list(tokens)), self.model, max_tokens=generate):
                yield int(token)
            # It has a step more under way, which must not run into the next contender's time.
            mx.synchronize(stream)


def load_mlx_lm(folder: Path) -> Module:
    """The model as mlx-lm loads it, weights not yet in memory; PeerError where mlx-lm cannot."""
    try:
        # Its import fails where a package that it needs, such as transformers, is missing or too old.
        from mlx_lm.utils import load_model

        return load_model(folder, lazy=True)[0]
    except (ImportError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise PeerError(f"mlx-lm cannot load {folder} ({error}); leave out --peer mlx-lm.") from error


def mlx_lm_tokenizer(folder: Path) -> Any:
    """mlx-lm's wrapper of the folder's tokenizer; PeerError where it cannot load it."""
    try:
        from mlx_lm.utils import load_tokenizer

        return load_tokenizer(folder)
    except (ImportError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise PeerError(f"mlx-lm cannot load the tokenizer of {folder} ({error}); leave out --peer mlx-lm.") from error


def level_weights(model: Any, dtype: str | None) -> str:
    """Give mlx-lm's model the weights that Russet computes with, and say in words which.

    On a CPU they are dense and, without `dtype`, float32; on a GPU the folder's own, in `dtype` if one is asked for.
    """
    from mlx_lm.utils import dequantize_model

    from russet.engine.device import on_gpu
    from russet.models.loading import DTYPES

    chosen = dtype or (None if on_gpu() else "float32")
    if chosen is None:
        return "the number format of the folder"
    model.set_dtype(DTYPES[chosen])
    if not on_gpu():
        # After the cast, so that scales are multiplied in the precision that Russet multiplies them in.
        dequantize_model(model)
    return chosen
