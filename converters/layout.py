"""Plan a model folder to the byte before anything is written: shards, offsets, config.json, index, tokenizer files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.converters.base import FLOATS, Source, SourceTensor
from russet.converters.hf import MLX_NAMES
from russet.converters.quantize import Recipe, Target, choose_dtype, target_of
from russet.models.safetensors_file import ITEM_BYTES
from russet.models.shards import INDEX

MAX_SHARD_BYTES = 5_000_000_000

# MLX's dtype name -> safetensors' ("F32" rather than "F64", which is read as float32)
STORED_NAMES = {name: stored for stored, name in MLX_NAMES.items() if stored != "F64"}


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the output: `dtype` in safetensors' naming, `offset` in its file once it is placed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        total = ITEM_BYTES[self.dtype]
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True, slots=True)
class Planned:
    """A source tensor with how it is stored, and the one or three tensors that hold it."""

    source: SourceTensor
    target: Target
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its header, ready to be written, and its tensors with their offsets."""

    name: str
    header: bytes
    tensors: tuple[Planned, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole model folder; `files` is everything but the shards."""

    dtype: str
    shards: tuple[Shard, ...]
    files: dict[str, Path | bytes]

    @property
    def tensors(self) -> list[Planned]:
        return [tensor for shard in self.shards for tensor in shard.tensors]

    @property
    def nbytes(self) -> int:
        small = sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values())
        return small + sum(shard.nbytes for shard in self.shards)


def make_plan(source: Source, recipe: Recipe, max_shard_bytes: int = MAX_SHARD_BYTES) -> Plan:
    """Lay out the folder that `recipe` makes of `source`."""
    dtype = choose_dtype(source.tensors, recipe, source.config)
    planned = [_planned(tensor, target_of(tensor, recipe, dtype)) for tensor in source.tensors]
    groups = _split(planned, max_shard_bytes)
    shards = tuple(_shard(_shard_name(i, len(groups)), group) for i, group in enumerate(groups))
    files = {
        **source.files,
        "config.json": _json(_config(source.config, planned, dtype)),
        INDEX: _json(_index(shards)),
    }
    return Plan(dtype, shards, files)


def _planned(tensor: SourceTensor, target: Target) -> Planned:
    stored = STORED_NAMES[target.dtype]
    if target.bits is None:
        return Planned(tensor, target, (Part(tensor.name, stored, tensor.shape),))
    out, width = tensor.shape
    base = tensor.name.removesuffix(".weight")
    groups = (out, width // target.group_size)
    parts = (
        Part(tensor.name, "U32", (out, width * target.bits // 32)),
        Part(f"{base}.scales", stored, groups),
        Part(f"{base}.biases", stored, groups),
    )
    return Planned(tensor, target, parts)


def _split(planned: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Cut into shards of at most `limit` bytes of data, never inside a tensor."""
    groups: list[list[Planned]] = [[]]
    filled = 0
    for tensor in planned:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _shard_name(i: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def _shard(name: str, group: Sequence[Planned]) -> Shard:
    """Give every part its offset: wide numbers first, so that all are aligned."""
    parts = sorted((part for t in group for part in t.parts), key=lambda p: (-ITEM_BYTES[p.dtype], p.name))
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    begins: dict[str, int] = {}
    end = 0
    for part in parts:
        begins[part.name], end = end, end + part.nbytes
        header[part.name] = {
            "dtype": part.dtype,
            "shape": part.shape,
            "data_offsets": (begins[part.name], end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    placed = tuple(
        Planned(
            t.source,
            t.target,
            tuple(Part(p.name, p.dtype, p.shape, start + begins[p.name]) for p in t.parts),
        )
        for t in group
    )
    return Shard(name, len(text).to_bytes(8, "little") + text, placed, start + end)


def _config(config: dict[str, Any], planned: Sequence[Planned], dtype: str) -> dict[str, Any]:
    """`config` with the number format and, in mlx-lm's layout, the quantisation: the commonest, then the exceptions."""
    config = dict(config)
    if dtype in FLOATS:
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    sizes: Counter[tuple[int, int]] = Counter()
    for tensor in planned:
        if tensor.target.bits is not None:
            sizes[tensor.target.group_size, tensor.target.bits] += tensor.source.size
    if not sizes:
        return config
    (group_size, bits), _ = sizes.most_common(1)[0]
    quantization: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    for tensor in planned:
        own = (tensor.target.group_size, tensor.target.bits)
        if tensor.target.bits is not None and own != (group_size, bits):
            quantization[tensor.source.name.removesuffix(".weight")] = {"group_size": own[0], "bits": own[1]}
    config["quantization"] = quantization
    return config


def _index(shards: Sequence[Shard]) -> dict[str, Any]:
    parts = {part.name: shard.name for shard in shards for t in shard.tensors for part in t.parts}
    total = sum(t.nbytes for shard in shards for t in shard.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(parts.items()))}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
