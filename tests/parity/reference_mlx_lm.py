"""mlx-lm on the CPU: the reference for openelm, which transformers runs only with code from the model's repository."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import openelm
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from variants import Config


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint for this configuration."""
    model = openelm.Model(openelm.ModelArgs.from_dict(config))
    tensors: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]
    return {name: tuple(array.shape) for name, array in tensors.items()}


class Model:
    """A committed folder in the reference implementation; mlx-lm's loader refuses missing and left-over tensors."""

    def __init__(self, folder: Path) -> None:
        self._model, _ = load_model(folder)

    def logits(self, tokens: np.ndarray, step: int) -> np.ndarray:
        """float32 [len(tokens), vocab], fed `step` tokens at a time through the reference's own cache."""
        cache = make_prompt_cache(self._model)
        pieces = []
        with mx.stream(mx.cpu):
            for start in range(0, len(tokens), step):
                output = self._model(mx.array(tokens[start : start + step])[None], cache=cache)
                pieces.append(np.array(output[0]))
        return np.concatenate(pieces)
