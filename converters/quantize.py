"""Decide how each tensor is stored, and encode it: MLX's affine quantisation in groups along the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from russet.converters.base import FLOATS, Packed, SourceTensor
from russet.engine.errors import InvalidOptionError, WeightsError

if TYPE_CHECKING:
    import mlx.core as mx

BITS = (16, 8, 4, 2)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP = 64
GGUF_GROUP = 32

FLOAT16_MAX = 65504.0
BLOCK_WEIGHTS = 1 << 22
"""How many weights are encoded at a time, so that intermediate copies stay small."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose stock name, with or without `.weight`, matches the glob `pattern` are stored in `bits`."""

    pattern: str
    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        _check_layout(self.bits, self.group_size)

    @staticmethod
    def parse(text: str) -> Rule:
        """`PATTERN=BITS` or `PATTERN=BITS:GROUP`; raises InvalidOptionError."""
        pattern, _, layout = text.rpartition("=")
        bits, _, group = layout.partition(":")
        if not pattern or not bits.isdecimal() or (group and not group.isdecimal()):
            raise InvalidOptionError(
                f"The rule {text!r} is not PATTERN=BITS or PATTERN=BITS:GROUP, as in '*.mlp.*=4:64'."
            )
        return Rule(pattern, int(bits), int(group) if group else None)

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.pattern) or fnmatchcase(name.removesuffix(".weight"), self.pattern)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the user asked for; None leaves it to the checkpoint."""

    bits: int | None = None
    group_size: int | None = None
    dtype: str | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        _check_layout(self.bits, self.group_size)
        if self.dtype is not None and self.dtype not in FLOATS:
            raise InvalidOptionError(f"dtype is {self.dtype!r}; it must be one of {', '.join(FLOATS)}.")


def _check_layout(bits: int | None, group_size: int | None) -> None:
    if bits is not None and bits not in BITS:
        raise InvalidOptionError(f"{bits} bits are not possible; choose {', '.join(map(str, BITS))}.")
    if group_size is not None and group_size not in GROUP_SIZES:
        raise InvalidOptionError(
            f"The group size {group_size} is not possible; choose {', '.join(map(str, GROUP_SIZES))}."
        )


@dataclass(frozen=True, slots=True)
class Target:
    """How a tensor is stored: dense in `dtype` where `bits` is None, else affine with scales in `dtype`.

    `keep` takes the source's own blocks as they are; `note` says why a tensor is not what was asked for.
    """

    dtype: str
    bits: int | None = None
    group_size: int = 0
    keep: bool = False
    note: str | None = None


def choose_dtype(tensors: Sequence[SourceTensor], recipe: Recipe, config: dict[str, Any]) -> str:
    """The number format of everything that is not packed: asked for, or that of most weights.

    GGUF's packed types have float16 scales. Float32 checkpoints stay so unless `--bits` asks for less: then the
    config's 16-bit format, else float16.
    """
    if recipe.dtype is not None:
        return recipe.dtype
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype if tensor.dtype in FLOATS else "float16"] += tensor.size
    stored = sizes.most_common(1)[0][0] if sizes else "float16"
    if stored != "float32" or recipe.bits is None:
        return stored
    named = str(config.get("dtype") or config.get("torch_dtype"))
    return named if named in ("float16", "bfloat16") else "float16"


def target_of(tensor: SourceTensor, recipe: Recipe, dtype: str) -> Target:
    """How `tensor` will be stored; `dtype` is that of `choose_dtype`."""
    if tensor.pinned:
        return Target("float32")
    if tensor.dtype.startswith(("int", "uint", "bool")):
        return Target(tensor.dtype)
    if not (tensor.name.endswith(".weight") and len(tensor.shape) == 2):
        return Target(dtype)
    rule = next((rule for rule in recipe.rules if rule.matches(tensor.name)), None)
    bits = rule.bits if rule else recipe.bits
    group = (rule.group_size if rule else None) or recipe.group_size
    if tensor.packed_bits is not None and bits in (None, tensor.packed_bits) and group in (None, GGUF_GROUP):
        if dtype != "bfloat16":
            return Target(dtype, tensor.packed_bits, GGUF_GROUP, keep=True)
        if bits is None:
            return Target(dtype, note=f"expanded from {tensor.dtype}, whose scales bfloat16 cannot hold exactly")
    if bits in (None, 16):
        return Target(dtype)
    group = group or DEFAULT_GROUP
    if tensor.shape[1] % group:
        return Target(dtype, note=f"kept dense: rows of {tensor.shape[1]} do not divide into groups of {group}")
    return Target(dtype, bits, group)


def blocks(tensor: SourceTensor, target: Target) -> Iterator[tuple[mx.array, ...]]:
    """The encoded tensor, some rows at a time: `(weight,)`, or `(weight, scales, biases)` where it is packed.

    Raises WeightsError for values that are not finite, or too large for float16.
    """
    import mlx.core as mx

    dtype = getattr(mx, target.dtype)
    if target.keep and tensor.read_packed is not None:
        packed = tensor.read_packed()
        scales, biases = _checked(tensor, packed.scales, dtype), _checked(tensor, packed.biases, dtype)
        yield Packed(packed.weight, scales, biases)
        return
    array = tensor.read()
    for part in rows(array):
        if target.bits is None:
            yield (_checked(tensor, part, dtype),)
        else:
            yield mx.quantize(_checked(tensor, part, dtype), target.group_size, target.bits)


def rows(array: mx.array) -> Iterator[mx.array]:
    """`array` in slices along its first axis of about BLOCK_WEIGHTS numbers."""
    if array.ndim < 2 or array.size <= BLOCK_WEIGHTS:
        yield array
        return
    step = max(1, BLOCK_WEIGHTS * array.shape[0] // array.size)
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]


def _checked(tensor: SourceTensor, array: mx.array, dtype: mx.Dtype) -> mx.array:
    """`array` in `dtype`, refused where that would lose a value altogether."""
    import mlx.core as mx

    if not mx.issubdtype(array.dtype, mx.floating):
        return array.astype(dtype)
    if not bool(mx.all(mx.isfinite(array))):
        raise WeightsError(
            f"The tensor {tensor.name!r} holds values that are not finite; the checkpoint is damaged or diverged."
        )
    if dtype == mx.float16 and array.dtype != mx.float16 and bool(mx.any(mx.abs(array) > FLOAT16_MAX)):
        raise WeightsError(
            f"The tensor {tensor.name!r} holds numbers above float16's largest, 65504; convert with --dtype bfloat16."
        )
    return array.astype(dtype)
