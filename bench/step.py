"""What one token of decoding costs an engine: operations that MLX launches, and bytes that are read."""

from __future__ import annotations

import io
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import mlx.core as mx

from russet.bench.work import cached_bytes
from russet.models.decoder import Decoder
from russet.models.linear import Affine

# What only looks at the same memory in another way launches nothing.
_VIEWS = {
    *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"),
    *("StopGradient", "Transpose", "Unflatten", "View"),
}
_PROMPT_TOKENS = 8
# The first step checks kernels, the second traces.
_STEPS_BEFORE = 2


class Stepping(Protocol):
    """A contender that can show the graph of one step: the logits after one token, not evaluated."""

    def step_graph(self, tokens: int, steps: int) -> mx.array: ...


@dataclass(slots=True)
class StepCost:
    """An engine's step; `read_bytes` are those of weights and cached rows at the middle of a run, by prompt length."""

    operations: int
    weights_bytes: int
    read_bytes: dict[int, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def operations(*outputs: mx.array) -> int:
    """The operations of a graph that is not evaluated yet; those that only make a view do not count."""
    drawn = io.StringIO()
    mx.export_to_dot(drawn, *outputs)
    return sum(name not in _VIEWS for name in re.findall(r'label ="(\w+)", shape=rectangle', drawn.getvalue()))


def step_cost(contender: Stepping, weights_bytes: int) -> StepCost:
    """Trace one step after a few that are evaluated."""
    return StepCost(operations(contender.step_graph(_PROMPT_TOKENS, _STEPS_BEFORE)), weights_bytes)


def read_bytes(decoder: Decoder, weights_bytes: int, context: int, kv_bits: int) -> int:
    """Bytes that a step reads at a context: all weights but a table that is only looked up, and the cached rows."""
    config = decoder.config
    weight = decoder.embed.weight
    parts = (weight.weight, weight.scales, weight.biases) if isinstance(weight, Affine) else (weight,)
    table = 0 if config.tied_head else sum(part.nbytes for part in parts)
    number = 1 if config.quantized_kv or kv_bits == 8 else decoder.dtype.size
    return weights_bytes - table + cached_bytes(config, context, number)
