"""Rounding of a whole model for 2-bit training, over whatever projections its configuration has.

Projections of the layers go to balanced 2-bit levels (balanced.py), tables to MLX's affine layout, and norms and biases
stay as they are. The scales are those with the least error at the start, times a clipping factor that is learned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from russet.converters.recipes.balanced import check_group, codes, nearest_scales, pack, quantize, store, stored_scales
from russet.converters.recipes.base import stock_tensors
from russet.converters.recipes.source import Params
from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig
from russet.models.sparsity import DOWN_KEY, NEURON_MAJOR
from russet.models.weights import BALANCED

CLIP = ".clip"
"""Ends the name of a tensor's clipping factors: their logarithms, [1, 1] or the shape of its scales."""

ADAPTER_A, ADAPTER_B = ".adapter_a", ".adapter_b"
"""End the names of a tensor's correction of low rank, A [rank, in] and B [out, rank]."""

CLIPS = ("tensor", "scale")
TABLE_BITS = (4, 8, 16)

_ADDED = (CLIP, ADAPTER_A, ADAPTER_B)
_TABLE_GROUP = 64
_TABLES = ("embed", "head")
_PROJECTIONS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")


@dataclass
class TwoBit:
    """How a decoder is rounded: `group` weights share a scale (0: a row), and `clip` is what has a factor of its own.

    With an `adapter`, every rounded tensor gets a correction of that rank in 16 bits. Where a ReLU lets neurons be
    skipped, down projections are rounded and stored a neuron a row. Raises InvalidOptionError for options that do not
    exist or do not fit the configuration.
    """

    config: DecoderConfig
    group: int = 64
    clip: str = "tensor"
    table_bits: int = 4
    adapter: int = 0
    nearest: Params = field(default_factory=dict, init=False)
    """The scales at the start, by role."""

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise InvalidOptionError(f"clip is {self.clip!r}; it must be {' or '.join(CLIPS)}.")
        if self.adapter < 0 or (self.adapter and self.neuron_major):
            raise InvalidOptionError(
                f"The adapter's rank is {self.adapter}; it must be 0 or more, and 0 for a ReLU model, whose kernels "
                "skip neurons and know no adapters."
            )
        if self.table_bits not in TABLE_BITS:
            raise InvalidOptionError(f"embedding_bits is {self.table_bits}; it must be 4, 8 or 16.")
        if self.table_bits < 16 and self.config.hidden_dim % _TABLE_GROUP:
            raise InvalidOptionError(
                f"Rows of {self.config.hidden_dim} weights do not divide into groups of {_TABLE_GROUP}: keep the "
                "embedding at 16 bits."
            )

    @property
    def neuron_major(self) -> bool:
        """Whether down projections are stored [ffn, hidden]."""
        sparse = all(layer.activation == "relu" for layer in self.config.layers)
        return sparse and not (self.config.ffn_bias or self.config.post_norms)

    @staticmethod
    def rounds(name: str) -> bool:
        """Whether an array is one that goes to 2 bits."""
        return name.startswith("layers.") and name.rpartition(".")[2] in _PROJECTIONS

    def roles(self, params: Params) -> list[str]:
        """The arrays that go to 2 bits."""
        return [name for name in params if self.rounds(name)]

    def start(self, weights: Params) -> Params:
        """The arrays that come to the weights, whose scales with the least error are kept."""
        for role in self.roles(weights):
            rows = self.stored(role, weights[role])
            check_group(self.group, rows.shape[1])
            self.nearest[role] = nearest_scales(rows, self.group)
            mx.eval(self.nearest[role])
        return self.factors(weights)

    def factors(self, weights: Params) -> Params:
        """Clipping factors of 1, and adapters that change nothing."""
        added: Params = {}
        for i, role in enumerate(self.roles(weights)):
            added[role + CLIP] = mx.zeros((1, 1) if self.clip == "tensor" else self.nearest[role].shape)
            if self.adapter:
                out, into = weights[role].shape
                noise = mx.random.normal((self.adapter, into), key=mx.random.key(i))
                added[role + ADAPTER_A] = noise * into**-0.5
                added[role + ADAPTER_B] = mx.zeros((out, self.adapter))
        return added

    def weights(self, params: Params, share: mx.array | None = None) -> Params:
        """What the folder will hold, by role, in float32; gradients go straight through the rounding.

        With `share` below 1, that part of the way from the parameters to what they are rounded to.
        """
        rounded = self._rounded(params)
        if share is None:
            return rounded
        return {name: array + (1 - share) * mx.stop_gradient(params[name] - array) for name, array in rounded.items()}

    def _rounded(self, params: Params) -> Params:
        rounded: Params = {}
        for name, array in params.items():
            if self.rounds(name):
                rounded[name] = self.stored(name, quantize(self.stored(name, array), self.scales(params, name)))  # pyright: ignore[reportArgumentType]
                if self.adapter:
                    rounded[name] = rounded[name] + params[name + ADAPTER_B] @ params[name + ADAPTER_A]
            elif name in _TABLES:
                rounded[name] = affine(array, self.table_bits)
            elif not name.endswith(_ADDED):
                rounded[name] = array
        return rounded

    def tensors(self, params: Params, names: dict[str, str]) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """Tensors by stock name as models/weights.py reads them, and the keys of config.json that say so."""
        dense = {
            name: array
            for name, array in params.items()
            if not (name.endswith(_ADDED) or self.rounds(name) or name in _TABLES)
        }
        tensors = stock_tensors(names, dense, mx.float16)
        for role in self.roles(params):
            scales = self.scales(params, role)
            kept = stored_scales(scales)
            tensors[f"{names[role]}.weight"] = pack(codes(self.stored(role, params[role]), scales))
            tensors[f"{names[role]}.scales"] = kept if self.group else kept[:, 0]
            if self.adapter:
                tensors[f"{names[role]}.lora_a"] = params[role + ADAPTER_A].astype(mx.float16)
                tensors[f"{names[role]}.lora_b"] = params[role + ADAPTER_B].astype(mx.float16)
        quantization: dict[str, Any] = {"group_size": self.group, "bits": 2, "mode": BALANCED}
        for role in (role for role in _TABLES if role in params):
            table = params[role].astype(mx.float16)
            if self.table_bits == 16:
                tensors[f"{names[role]}.weight"] = table
                continue
            parts = ("weight", "scales", "biases")
            packed = mx.quantize(table, _TABLE_GROUP, self.table_bits)
            tensors.update({f"{names[role]}.{part}": array for part, array in zip(parts, packed, strict=True)})
            quantization[names[role]] = {"group_size": _TABLE_GROUP, "bits": self.table_bits, "mode": "affine"}
        keys: dict[str, Any] = {"quantization": quantization}
        return tensors, keys | ({DOWN_KEY: NEURON_MAJOR} if self.neuron_major else {})

    def bits_per_weight(self, params: Params) -> float:
        """Bits that a weight of the layers takes, scales and adapters included."""
        roles = self.roles(params)
        half = sum(self.nearest[role].size for role in roles)
        half += sum(array.size for name, array in params.items() if name.endswith((ADAPTER_A, ADAPTER_B)))
        return 2 + 16 * half / sum(params[role].size for role in roles)

    def changed(self, params: Params, source: Params) -> float:
        """The share of codes that are others than the source's at the start."""
        moved = total = 0
        for role in self.roles(params):
            now = codes(self.stored(role, params[role]), self.scales(params, role))
            moved += int((now != codes(self.stored(role, source[role]), self.nearest[role])).sum().item())  # pyright: ignore[reportArgumentType]
            total += now.size
        return moved / total

    def scales(self, params: Params, role: str) -> mx.array:
        """The scales as they will be stored, in float32."""
        return store(self.nearest[role] * mx.exp(params[role + CLIP]))  # pyright: ignore[reportReturnType]

    def stored(self, role: str, weight: mx.array) -> mx.array:
        """A weight [out, in] as it is stored, and back: rows are what groups lie along."""
        return weight.T if self.neuron_major and role.endswith(".down") else weight


def affine(table: mx.array, bits: int) -> mx.array:
    """A table as MLX's affine layout with float16 scales holds it; its gradient is that of the table itself."""

    @mx.custom_function
    def rounded(table: mx.array) -> mx.array:
        half = table.astype(mx.float16)
        if bits == 16:
            return half.astype(table.dtype)
        packed, scales, offsets = mx.quantize(half, _TABLE_GROUP, bits)
        # The stored numbers are float16, and what they stand for is computed in float32.
        wide = scales.astype(mx.float32), offsets.astype(mx.float32)
        return mx.dequantize(packed, *wide, _TABLE_GROUP, bits).astype(table.dtype)

    @rounded.vjp
    def straight(primals: Any, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent

    return rounded(table)  # pyright: ignore[reportReturnType]
