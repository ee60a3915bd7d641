"""Read PyTorch's zip checkpoints without PyTorch, and without running anything that is in them.

A `.pt` or `.bin` file is a zip archive of one pickle and one stored entry a storage. The pickle is read by an
unpickler that knows a handful of names and refuses all others, so that no code of the file's choosing is called.
Storages are mapped from the archive, so that a file larger than memory can be converted.
Format: torch/serialization.py and torch/_utils.py of PyTorch.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.converters.base import SourceTensor
from russet.converters.torch_pickle import ITEM_BYTES, StateUnpickler, View
from russet.engine.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

MAX_PICKLE_BYTES = 256 << 20
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""A pickle of the number that torch.save wrote first before PyTorch 1.6."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_torch_file(path: Path) -> tuple[SourceTensor, ...]:
    """The tensors of a PyTorch checkpoint, out of `{"state_dict": ...}` or `{"model": ...}` where they are wrapped.

    Raises UnsafeCheckpointError, naming it, when the pickle asks for anything that a state dict does not need, and
    CheckpointError for the legacy format, TorchScript archives and damaged files.
    """
    archive = _Archive(path)
    state = _unwrap(path, archive.unpickle())
    views = {name: value for name, value in state.items() if isinstance(value, View)}
    return tuple(_source_tensor(archive, str(name), view) for name, view in views.items())


def _source_tensor(archive: _Archive, name: str, view: View) -> SourceTensor:
    archive.check(name, view)
    nbytes = prod(view.shape) * ITEM_BYTES[view.dtype]
    return SourceTensor(name, view.shape, view.dtype, nbytes, lambda: archive.read(view))


def _unwrap(path: Path, state: Any) -> Mapping[Any, Any]:
    """The dictionary of tensors in what the pickle held."""
    for _ in range(3):
        if not isinstance(state, dict):
            break
        if any(isinstance(value, View) for value in state.values()):
            return state
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None)
    raise CheckpointError(
        f"{path.name} holds no state dict; a dictionary of tensors is expected, alone or under "
        f"{', '.join(repr(key) for key in _WRAPPERS)}."
    )


class _Archive:
    """The zip file, verified to be one that torch.save wrote, with its storages mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                start = file.read(len(LEGACY_MAGIC))
            if start == LEGACY_MAGIC:
                raise CheckpointError(
                    f"{path.name} is in the format PyTorch used before 1.6; "
                    "load it with torch.load and save it again with torch.save."
                )
            with zipfile.ZipFile(path) as archive:
                self._entries = {info.filename: info for info in archive.infolist()}
                self._root = self._find_root()
                self._pickle = self._bytes(archive, "data.pkl", MAX_PICKLE_BYTES)
                order = self._bytes(archive, "byteorder", 16) if self._has("byteorder") else b"little"
        except OSError as error:
            raise CheckpointError(f"{path} could not be read ({error.strerror or error}).") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"{path.name} is not a complete PyTorch checkpoint ({error}); it is cut short or damaged."
            ) from error
        if order != b"little":
            raise CheckpointError(f"{path.name} was saved on a big-endian machine; save it on a little-endian one.")
        self._mapped: np.ndarray | None = None

    def unpickle(self) -> Any:
        """What the pickle holds, with storages and tensors as stand-ins."""
        try:
            return StateUnpickler(io.BytesIO(self._pickle), self.path.name).load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise CheckpointError(
                f"The pickle in {self.path.name} is damaged ({type(error).__name__}: {error}); fetch it again."
            ) from error

    def check(self, name: str, view: View) -> None:
        """Verify that the view stays inside its storage, and the storage inside the file."""
        item = ITEM_BYTES[view.dtype]
        entry = self._entry(f"data/{view.storage.key}")
        self._data_start(entry)
        length = entry.file_size // item
        numbers = (view.offset, *view.shape, *view.strides)
        inside = all(type(n) is int and n >= 0 for n in numbers)
        if inside and prod(view.shape):
            steps = zip(view.shape, view.strides, strict=True)
            inside = view.offset + sum((n - 1) * stride for n, stride in steps) < length
        if not inside:
            raise CheckpointError(
                f"{self.path.name}: tensor {name!r} reaches outside its storage of {length} elements; "
                "the file is damaged."
            )
        if prod(view.shape) > length:
            raise CheckpointError(
                f"{self.path.name}: tensor {name!r} repeats its storage; save it again with .contiguous()."
            )

    def read(self, view: View) -> mx.array:
        """One tensor, made contiguous; float64 becomes float32."""
        import mlx.core as mx
        import numpy as np

        entry = self._entry(f"data/{view.storage.key}")
        start, item = self._data_start(entry), ITEM_BYTES[view.dtype]
        kind = {"bfloat16": "<u2", "bool_": "?"}.get(view.dtype) or np.dtype(view.dtype).newbyteorder("<")
        storage = self._map()[start : start + entry.file_size // item * item].view(kind)
        strides = [stride * item for stride in view.strides]
        array = np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides, writeable=False)
        if view.dtype == "float64":
            array = array.astype(np.float32)
        result = mx.array(array)
        return result.view(mx.bfloat16) if view.dtype == "bfloat16" else result

    def _find_root(self) -> str:
        """The folder that everything in the archive lies in."""
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path.name} is a zip archive but not a PyTorch checkpoint (no data.pkl).")
        root = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") or name == f"{root}constants.pkl" for name in self._entries):
            raise CheckpointError(
                f"{self.path.name} is a TorchScript program, not weights; save its state_dict() with torch.save."
            )
        return root

    def _has(self, name: str) -> bool:
        return self._root + name in self._entries

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise CheckpointError(f"{self.path.name} lacks its entry {name!r}; the file is damaged.")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path.name} is compressed; torch.save stores its entries as they are.")
        return entry

    def _bytes(self, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
        entry = self._entry(name)
        if entry.file_size > limit:
            raise CheckpointError(f"{self.path.name}: {name} has {entry.file_size:,} bytes, over {limit:,}.")
        return archive.read(entry)

    def _map(self) -> np.ndarray:
        import numpy as np

        if self._mapped is None:
            self._mapped = np.memmap(self.path, dtype=np.uint8, mode="r")
        return self._mapped

    def _data_start(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: after its local header, whose name and padding have lengths of their own."""
        header = self._map()[entry.header_offset : entry.header_offset + 30].tobytes()
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + 30 + lengths
        if not header.startswith(b"PK\x03\x04") or start + entry.file_size > self._map().size:
            raise CheckpointError(f"{self.path.name}: the entry {entry.filename!r} is cut short; fetch it again.")
        return start
