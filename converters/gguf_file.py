"""Open a GGUF file: its metadata as plain values, its tensors dense or, where MLX can hold them exactly, packed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, read through the `gguf` package.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.converters.base import Packed, SourceTensor
from russet.engine.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from gguf import GGUFReader, ReaderTensor

MAGIC = b"GGUF"

# GGUF types of 32 weights a block that are affine: a scale d and a minimum, or d alone with centred codes.
# type -> (bits, bytes before the codes, offset of the codes or None where the minimum is stored)
AFFINE = {"Q4_0": (4, 2, 8), "Q4_1": (4, 4, None), "Q5_0": (5, 2, 16), "Q5_1": (5, 4, None), "Q8_0": (8, 2, 128)}

_DENSE = {"F32": "float32", "F16": "float16", "F64": "float32", "BF16": "bfloat16"}


class GGUFFile:
    """An opened GGUF file. Raises CheckpointError when it is cut short, damaged, or not GGUF version 2 or 3."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        try:
            self._reader = _open_reader(path)
        except OSError as error:
            raise CheckpointError(f"{path} could not be read ({error.strerror or error}).") from error
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise CheckpointError(
                f"{path.name} is not a complete GGUF file; it is cut short or damaged, fetch it again."
            ) from error

    @cached_property
    def architecture(self) -> str:
        return self.require("general.architecture", str)

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as a plain number, string or list."""
        field = self._reader.get_field(key)
        if field is None:
            return default
        if key not in self._values:
            try:
                self._values[key] = field.contents()
            except (ValueError, IndexError) as error:
                raise CheckpointError(f"{self.path.name}: metadata {key!r} is damaged ({error}).") from error
        return self._values[key]

    def require(self, key: str, kind: type) -> Any:
        """A metadata value that must be there; whole numbers serve where a float is asked for."""
        value = self.get(key)
        if kind is float and isinstance(value, int):
            return float(value)
        if not isinstance(value, kind):
            found = "lacks" if value is None else f"has {value!r} for"
            raise CheckpointError(f"{self.path.name} {found} the metadata {key!r}, where a {kind.__name__} is needed.")
        return value

    def number(self, key: str, kind: type, default: Any = None) -> Any:
        """`architecture.key`; floats are rounded to the shortest decimal that float32 tells apart."""
        import numpy as np

        name = f"{self.architecture}.{key}"
        if default is not None and self.get(name) is None:
            return default
        value = self.require(name, kind)
        return float(str(np.float32(value))) if kind is float else value

    @cached_property
    def tensors(self) -> dict[str, SourceTensor]:
        """By the file's own names."""
        return {tensor.name: self._tensor(tensor) for tensor in self._reader.tensors}

    def _tensor(self, tensor: ReaderTensor) -> SourceTensor:
        kind = tensor.tensor_type.name
        shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
        if kind not in _DENSE and not _can_expand(tensor):
            raise UnsupportedModelError(
                f"{self.path.name}: tensor {tensor.name!r} is stored as {kind}, which Russet cannot expand; "
                "use a file with K-quants or legacy quants."
            )
        affine = AFFINE.get(kind)
        return SourceTensor(
            name=tensor.name,
            shape=shape,
            dtype=_DENSE.get(kind, kind),
            nbytes=tensor.n_bytes,
            read=partial(_expand, tensor, shape),
            packed_bits=affine[0] if affine else None,
            read_packed=partial(_repack, tensor) if affine else None,
        )


def _open_reader(path: Path) -> GGUFReader:
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        """Keeps the mapped file as a plain array: slicing a memmap takes more than half of the time of opening."""

        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = mapped.view(np.ndarray)

    return PlainReader(path)


def _can_expand(tensor: ReaderTensor) -> bool:
    """Whether the gguf package implements the type."""
    import numpy as np
    from gguf.quants import dequantize

    try:
        dequantize(tensor.data[:0] if tensor.data.ndim > 1 else np.zeros(0, np.uint8), tensor.tensor_type)
    except NotImplementedError:
        return False
    except ValueError:
        return True
    return True


def _expand(tensor: ReaderTensor, shape: tuple[int, ...]) -> mx.array:
    import mlx.core as mx
    import numpy as np
    from gguf.quants import dequantize

    kind = tensor.tensor_type.name
    if kind == "BF16":
        return mx.array(tensor.data.view(np.uint16).reshape(shape)).view(mx.bfloat16)
    if kind in ("F32", "F16"):
        return mx.array(tensor.data.reshape(shape))
    return mx.array(dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False).reshape(shape))


def _repack(tensor: ReaderTensor) -> Packed:
    """The same numbers in MLX's layout: codes lowest bits first along each row, scale * code + bias."""
    import mlx.core as mx
    import numpy as np

    bits, header, centre = AFFINE[tensor.tensor_type.name]
    rows = tensor.data.reshape(tensor.data.shape[0], -1)
    blocks = rows.reshape(rows.shape[0], -1, header + 4 * bits)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if centre is None:
        biases = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0]
    else:
        biases = scales * np.float16(-centre)
    codes = {4: _codes4, 5: _codes5, 8: _codes8}[bits](blocks[..., header:])
    weight = np.ascontiguousarray(codes).reshape(rows.shape[0], -1).view(np.uint32)
    return Packed(mx.array(weight), mx.array(scales), mx.array(biases))


def _codes4(block: np.ndarray) -> np.ndarray:
    """Weight j lies in the low half of byte j, weight j + 16 in the high half; MLX wants neighbours in one byte."""
    low, high = block & 15, block >> 4
    return _halves(low[..., 0::2] | low[..., 1::2] << 4, high[..., 0::2] | high[..., 1::2] << 4)


def _codes5(block: np.ndarray) -> np.ndarray:
    """Four fifth-bit bytes, then sixteen as in four bits; MLX wants eight 5-bit codes in every five bytes."""
    import numpy as np

    fifth = np.unpackbits(np.ascontiguousarray(block[..., :4]), axis=-1, bitorder="little")
    codes = _halves(block[..., 4:] & 15, block[..., 4:] >> 4) | fifth << 4
    eights = codes.reshape(*codes.shape[:-1], 4, 8).astype(np.uint64)
    words = np.bitwise_or.reduce(eights << (np.arange(8, dtype=np.uint64) * np.uint64(5)), axis=-1)
    return words.astype("<u8")[..., None].view(np.uint8)[..., :5]


def _codes8(block: np.ndarray) -> np.ndarray:
    """Signed bytes; adding 128 makes them codes."""
    import numpy as np

    return block ^ np.uint8(0x80)


def _halves(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([first, second], axis=-1)
