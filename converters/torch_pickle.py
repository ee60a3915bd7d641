"""The restricted unpickler of torch_file.py: the names that a state dict needs, as stand-ins, and no others.

Names and arguments follow torch/_utils.py and torch/serialization.py of PyTorch.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from russet.engine.errors import CheckpointError, UnsafeCheckpointError

# dtype in MLX's name -> bytes an element
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool_": 1,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool_",
}
_DTYPES = {name.removesuffix("_"): name for name in ITEM_BYTES}

# The stand-ins are tuples: unlike other objects, a pickle cannot alter them once they are made.


class DtypeName(NamedTuple):
    """Stands for a torch storage class or a torch.dtype; None is untyped."""

    name: str | None


class Storage(NamedTuple):
    dtype: str | None
    key: str
    length: int


class View(NamedTuple):
    """A tensor: a strided view of a storage; offset and strides count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Table(dict):
    """Stands for an OrderedDict; what a pickle would set on it (`_metadata`) is ignored."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class StateUnpickler(pickle.Unpickler):
    """Builds dictionaries of stand-ins; every other global is refused by name."""

    def __init__(self, file: Any, label: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._label = label

    def find_class(self, module: str, name: str, /) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): Table,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_typed,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return DtypeName(_STORAGES[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return DtypeName(None)
        if module == "torch" and name in _DTYPES:
            return DtypeName(_DTYPES[name])
        if module == "torch" and name.lower().startswith(("float8", "float4", "complex", "quint", "qint")):
            raise CheckpointError(
                f"{self._label} holds {name} tensors, which Russet does not read; start from the 16-bit checkpoint."
            )
        raise UnsafeCheckpointError(
            f"{self._label} asks to run {module}.{name}, which a file of weights has no need of; nothing was run. "
            "Save the model's state_dict() alone, or get the model from a source you trust as safetensors."
        )

    def persistent_load(self, pid: Any, /) -> Storage:
        match pid:
            case ("storage", DtypeName(dtype), str(key), _, int(length)):
                return Storage(dtype, key, length)
        raise CheckpointError(f"The pickle in {self._label} refers to {pid!r}, which is not a storage.")

    def _rebuild_typed(
        self,
        storage: Storage,
        offset: int,
        shape: Any,
        strides: Any,
        _grad: Any,
        _hooks: Any,
        dtype: DtypeName,
        *_: Any,
    ) -> View:
        return _rebuild_tensor(Storage(dtype.name, storage.key, storage.length), offset, shape, strides)


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> View:
    if not isinstance(storage, Storage) or storage.dtype is None or len(shape) != len(strides):
        raise ValueError("a tensor without a storage or a dtype, or with strides for another shape")
    return View(storage, storage.dtype, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: View, *_: Any) -> View:
    return data
