"""How much memory a training step will take, before it starts.

An upper estimate by counting, for the compiled step: arrays that live at its fullest point. MLX keeps freed buffers for
later steps, so a device shows more in use than this.
"""

from __future__ import annotations

from russet.converters.recipes.base import Recipe
from russet.converters.recipes.losses import ROWS
from russet.converters.recipes.source import Params
from russet.engine.device import memory_bytes, on_gpu
from russet.engine.errors import InvalidOptionError
from russet.engine.storage import readable_bytes
from russet.models.config import DecoderConfig

STATES = 8
"""Float32 copies of the trained arrays: weights, two moments and gradients, and the new three beside the old."""
HEAD = 8
"""Float32 numbers for each logit of a chunk of rows: both models' logits, their normalised forms, the gradient."""
HIDDEN = 14
FFN = 6
"""Kept for the backward pass at each token of a layer: so many rows of the hidden size, and so many of the FFN's."""
SHARE = 0.9
"""Of the device's memory that a step may take."""


def step_bytes(recipe: Recipe, params: Params, batch: int, length: int, average: bool) -> int:
    """Bytes that the step over `batch` sequences of `length` tokens takes at its fullest."""
    tokens, wide = batch * length, 4
    kinds = recipe.dtype.size
    trained = sum(array.size for array in params.values()) * wide * (STATES + 2 * average)
    frozen = sum(array.size for array in recipe.source.weights.values()) * (wide + 2 * kinds)
    kept = tokens * sum(_kept(recipe.config, i) for i in range(len(recipe.config.layers))) * kinds
    teacher = tokens * len(recipe.teacher.config.layers) * recipe.teacher.config.hidden_dim * kinds
    head = min(tokens, ROWS) * recipe.config.vocab_size * wide * HEAD
    return trained + frozen + kept + head + (teacher if recipe.weights_of_loss.hidden else 0)


def refuse_oversize(recipe: Recipe, params: Params, batch: int, length: int, average: bool) -> int:
    """The estimate; raises InvalidOptionError where it is more than the device has for it."""
    needed, there = step_bytes(recipe, params, batch, length, average), SHARE * memory_bytes()
    if needed > there:
        device = "GPU" if on_gpu() else "machine"
        raise InvalidOptionError(
            f"A step of {batch} x {length} tokens takes about {readable_bytes(needed)} and this {device} has "
            f"{readable_bytes(there)} for it: lower --batch or --length."
        )
    return needed


def _kept(config: DecoderConfig, layer: int) -> int:
    """Numbers of a layer that the backward pass needs, for each token."""
    spec = config.layers[layer]
    heads = (2 * spec.heads + 4 * spec.kv_heads) * spec.head_dim
    return HIDDEN * config.hidden_dim + FFN * spec.ffn_dim + heads
