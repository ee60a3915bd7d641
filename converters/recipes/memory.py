"""How much memory a training step will take, before it starts.

Arrays that live at its fullest point are counted: either in the backward pass, or where the optimizer has new states
beside the old ones. On a CPU in float32 a step of relufy on SmolLM2-135M peaked at 3.99 GB with 192 tokens and at 5.49
with 1024; the estimates are 4.3 and 6.7. A GPU holds more, since launches are handed over ahead: on an H200 in bfloat16
27.4, 45.4 and 74.5 GB with 8, 16 and 32 x 1024 tokens where 19, 29 and 49 were counted. MLX keeps freed buffers for
later steps, so a device shows more in use.
"""

from __future__ import annotations

from russet.converters.recipes.base import Recipe
from russet.converters.recipes.losses import ROWS
from russet.converters.recipes.source import Params
from russet.engine.device import memory_bytes, on_gpu
from russet.engine.errors import InvalidOptionError
from russet.engine.storage import readable_bytes
from russet.models.config import DecoderConfig

STATES, NEW = 4, 3
"""Float32 copies of the trained arrays: weights, two moments and gradients; and of the new states."""
HEAD = 8
"""Float32 numbers for each logit of a chunk of rows: both models' logits, their normalised forms, the gradient."""
HIDDEN = 14
FFN = 6
"""Kept for the backward pass at each token of a layer: so many rows of the hidden size, and so many of the FFN's."""
AHEAD = 1.6
"""What a GPU holds for each byte that is counted."""
WIDE = 4
"""Bytes of a float32."""
SHARE = 0.9
"""Of the device's memory that a step may take."""


def step_bytes(recipe: Recipe, params: Params, batch: int, length: int, average: bool) -> int:
    """Bytes that the step over `batch` sequences of `length` tokens takes at its fullest."""
    tokens, size = batch * length, recipe.dtype.size
    trained = sum(array.size for array in params.values()) * WIDE
    cast = 2 * size if size < WIDE else 0
    frozen = sum(array.size for array in recipe.source.weights.values()) * (WIDE + cast)
    kept = tokens * sum(_kept(recipe.config, i) for i in range(len(recipe.config.layers))) * size
    teacher = tokens * len(recipe.teacher.config.layers) * recipe.teacher.config.hidden_dim * size
    head = min(tokens, ROWS) * recipe.config.vocab_size * WIDE * HEAD
    backward = kept + head + (teacher if recipe.weights_of_loss.hidden else 0)
    counted = frozen + trained * (STATES + average) + max(backward, trained * (NEW + average))
    return round(counted * AHEAD) if on_gpu() else counted


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
