"""The tensors of a model folder, by role, checked against the shapes that the configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from russet.engine.errors import CheckpointError, UnsupportedModelError, WeightsError
from russet.models.config import DecoderConfig
from russet.models.linear import Affine, Weight
from russet.models.safetensors_file import open_safetensors
from russet.models.shapes import Shape, expected_shapes, parameter_count
from russet.models.shards import shards
from russet.models.sparsity import read_sparsity


class WeightSource(Protocol):
    """Where a decoder's tensors come from, by role; `Weights` reads a folder."""

    def has(self, role: str) -> bool: ...

    def weight(self, role: str, dtype: mx.Dtype, expand: bool) -> Weight: ...

    def dense(self, role: str, dtype: mx.Dtype) -> mx.array: ...

    def bias(self, role: str) -> mx.array: ...

    def bare(self, role: str) -> mx.array: ...

    def taken(self) -> list[mx.array]: ...


FLOATS = (mx.float32, mx.float16, mx.bfloat16)

_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)

BALANCED = "balanced"
"""The `mode` of 2-bit tensors with levels {-1.5, -0.5, 0.5, 1.5} times a scale: MLX's affine layout without biases."""


class Weights:
    """Lazily loaded tensors; each is handed out once, and freed by whoever took it."""

    def __init__(self, folder: Path, config: dict[str, Any], roles: dict[str, str], decoder: DecoderConfig) -> None:
        self.folder = folder
        self.parameters = parameter_count(decoder, roles)
        self._roles = roles
        self._shapes = expected_shapes(decoder)
        if read_sparsity(config, len(decoder.layers)).neuron_major:
            self._shapes |= {role: shape[::-1] for role, shape in self._shapes.items() if role.endswith(".down")}
        self._quantization = _quantization(config)
        self._tensors: dict[str, mx.array] = {}
        self._taken: list[mx.array] = []
        for shard in check_shards(folder):
            loaded = mx.load(str(shard))
            assert isinstance(loaded, dict)
            self._tensors.update(loaded)

    @property
    def dtype(self) -> mx.Dtype:
        """The number format of the checkpoint: its embedding's, or its embedding scales' where that is packed."""
        name = self._roles["embed"]
        tensor = self._tensors.get(f"{name}.scales", self._tensors.get(f"{name}.weight"))
        return tensor.dtype if tensor is not None and tensor.dtype in FLOATS else mx.float32

    @property
    def packed(self) -> bool:
        """Whether any tensor is quantised."""
        return any(name.endswith(".scales") for name in self._tensors)

    def has(self, role: str) -> bool:
        return role in self._roles

    def packed_layout(self, name: str) -> tuple[int, int] | None:
        """Bits and group size of the tensor `name` (0: one group a row), or None where it is dense."""
        if f"{name}.scales" not in self._tensors:
            return None
        group_size, bits, _ = self._layout(name)
        return bits, group_size

    def weight(self, role: str, dtype: mx.Dtype, expand: bool) -> Weight:
        """A role's weight in `dtype`; a packed one stays packed unless `expand`."""
        name, shape = self._roles[role], self._shapes[role]
        if f"{name}.scales" in self._tensors:
            affine = self._affine(name, shape, dtype)
            return self._take(affine.expand(dtype)) if expand else affine
        return self.dense(role, dtype)

    def dense(self, role: str, dtype: mx.Dtype) -> mx.array:
        """A role's weight where a packed one makes no sense, such as a norm's."""
        return self._take(self._tensor(f"{self._roles[role]}.weight", self._shapes[role]).astype(dtype))

    def bias(self, role: str) -> mx.array:
        return self._take(self._tensor(f"{self._roles[role]}.bias", self._shapes[role][:1]))

    def bare(self, role: str) -> mx.array:
        """A tensor that is stored under the role's name itself, without `.weight`."""
        return self._take(self._tensor(self._roles[role], self._shapes[role]))

    def taken(self) -> list[mx.array]:
        """What was handed out since the last call, to be evaluated together."""
        taken, self._taken = self._taken, []
        return taken

    def _take(self, array: mx.array) -> mx.array:
        self._taken.append(array)
        return array

    def _tensor(self, name: str, shape: Shape) -> mx.array:
        tensor = self._pop(name)
        if tensor.dtype not in FLOATS:
            raise WeightsError(f"{name} in {self.folder} is {tensor.dtype}; a floating-point tensor is expected.")
        if tensor.shape != shape:
            raise WeightsError(f"{name} in {self.folder} has shape {tensor.shape}; its config.json asks for {shape}.")
        return tensor

    def _affine(self, name: str, shape: Shape, dtype: mx.Dtype) -> Affine:
        group_size, bits, balanced = self._layout(name)
        weight, scales = self._pop(f"{name}.weight"), self._pop(f"{name}.scales")
        if balanced:
            scales, group_size = _groups_of(scales, shape[1], group_size)
        biases = -1.5 * scales if balanced else self._pop(f"{name}.biases")
        packed, groups = (shape[0], shape[1] * bits // 32), (shape[0], shape[1] // group_size)
        if weight.shape != packed or scales.shape != groups or biases.shape != groups or weight.dtype != mx.uint32:
            raise WeightsError(
                f"{name} in {self.folder} is not a {bits}-bit tensor of shape {shape} in groups of {group_size}, "
                "as its config.json says."
            )
        arrays = [self._take(array) for array in (weight, scales.astype(dtype), biases.astype(dtype))]
        return Affine(*arrays, group_size, bits, self._adapter(name, shape, dtype))  # pyright: ignore[reportCallIssue]

    def _adapter(self, name: str, shape: Shape, dtype: mx.Dtype) -> tuple[mx.array, mx.array] | None:
        """The low-rank correction `<name>.lora_a` [rank, in] and `<name>.lora_b` [out, rank], where there is one."""
        if f"{name}.lora_a" not in self._tensors:
            return None
        rank = self._tensors[f"{name}.lora_a"].shape[0]
        a = self._tensor(f"{name}.lora_a", (rank, shape[1]))
        b = self._tensor(f"{name}.lora_b", (shape[0], rank))
        return self._take(a.astype(dtype)), self._take(b.astype(dtype))

    def _layout(self, name: str) -> tuple[int, int, bool]:
        """Group size, bits, and whether offsets are left out because the levels are balanced."""
        own = self._quantization.get(name)
        settings = own if isinstance(own, dict) else self._quantization
        mode = settings.get("mode", "affine")
        if mode not in ("affine", BALANCED):
            raise UnsupportedModelError(
                f"{name} is quantised in mode {mode!r}; Russet reads MLX's affine mode and its own, {BALANCED!r}."
            )
        try:
            group_size, bits = settings["group_size"], settings["bits"]
        except KeyError:
            raise CheckpointError(
                f"config.json of {self.folder} does not say group_size and bits, though {name} is quantised."
            ) from None
        if mode == BALANCED and (bits, group_size in (0, *_GROUPS)) != (2, True):
            raise UnsupportedModelError(
                f"{name} is quantised in mode {BALANCED!r} to {bits} bits in groups of {group_size}; 2 bits in "
                "groups of 32, 64 or 128, or 0 for a scale a row, are what there is."
            )
        if mode != BALANCED and (bits not in _BITS or group_size not in _GROUPS):
            raise UnsupportedModelError(
                f"{name} is quantised to {bits!r:.40} bits in groups of {group_size!r:.40}; MLX has 2, 3, 4, 5, 6 or 8 "
                "bits in groups of 32, 64 or 128."
            )
        return int(group_size), int(bits), mode == BALANCED

    def _pop(self, name: str) -> mx.array:
        try:
            return self._tensors.pop(name)
        except KeyError:
            raise WeightsError(
                f"{self.folder} has no tensor {name}, which its config.json asks for; convert the checkpoint again."
            ) from None


def _groups_of(scales: mx.array, width: int, group_size: int) -> tuple[mx.array, int]:
    """Balanced scales as MLX's products take them: one a row is repeated over the largest groups that fit."""
    if group_size or scales.ndim != 1:
        return scales, group_size or width
    group_size = next((size for size in (128, 64, 32) if width % size == 0), width)
    return mx.repeat(scales[:, None], width // group_size, axis=1), group_size


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    settings = config.get("quantization") or {}
    method = (config.get("quantization_config") or {}).get("quant_method")
    if not settings and method:
        raise UnsupportedModelError(
            f"config.json asks for {method!r} quantisation, which Russet does not read; convert the 16-bit checkpoint."
        )
    return settings


def check_shards(folder: Path) -> list[Path]:
    """The folder's weight files, after reading every header: a damaged one is refused before MLX maps it."""
    files = shards(folder)
    for file in files:
        open_safetensors(file)
    return files
