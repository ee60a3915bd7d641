"""Documents that ran before, on disk: what `Superposition` needs of a document but its positions.

A document's rows depend on the model, the preamble and the document, which name its file. They were computed with the
document's tokens one position apart; superposition then rotates the keys for other distances. So a hidden row of a deep
layer is the one of natural spacing, an approximation that running the document at its final positions does not make.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from russet.engine.array_file import open_checked, write_checked
from russet.engine.bounded_folder import evict, touch
from russet.engine.errors import CheckpointError, InvalidOptionError, StorageError
from russet.engine.prefill.document_rows import DocumentRows, Shape, layers_by_shape
from russet.engine.storage import make_folder
from russet.models.decoder import Decoder
from russet.models.fingerprint import fingerprint

_logger = logging.getLogger("russet")

FORMAT = "russet-document-2"
SUFFIX = ".safetensors"
DEFAULT_LIMIT = 4_000_000_000
DEFAULT_MEMORY = 256_000_000


class DocumentCache:
    """Documents' rows in `folder`, at most `max_bytes` of files; several models and processes may share it.

    `memory_bytes` of them, those used last, stay in memory as well, and are neither read nor verified again; 0 keeps
    none. A file that is damaged or cannot be written costs a warning and the time to compute its rows, never the reply.
    Raises InvalidOptionError.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_LIMIT, memory_bytes: int = DEFAULT_MEMORY) -> None:
        if max_bytes <= 0:
            raise InvalidOptionError(f"max_bytes is {max_bytes!r}; give the size that the document cache may take.")
        if memory_bytes < 0:
            raise InvalidOptionError(f"memory_bytes is {memory_bytes!r}; give 0 or more.")
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self.memory_bytes = memory_bytes
        self._recent: OrderedDict[Path, DocumentRows] = OrderedDict()
        self._models: dict[Path, str] = {}
        self._warned: set[str] = set()

    def read(self, decoder: Decoder, preamble: Sequence[int], document: Sequence[int]) -> DocumentRows | None:
        """The rows of a document behind a preamble, or None; arrays are read from the file when they are needed."""
        path = self._path(decoder, preamble, document)
        rows = self._recent.get(path)
        if rows is None:
            if not path.exists():
                return None
            try:
                rows = _read(path, decoder, len(document) or len(preamble))
            except (CheckpointError, OSError) as error:
                self._warn("damaged", f"A damaged document in the cache is computed anew: {error}")
                return None
        touch([path])
        self._remember(path, rows)
        return rows

    def write(
        self,
        decoder: Decoder,
        preamble: Sequence[int],
        documents: Sequence[Sequence[int]],
        rows: Sequence[DocumentRows],
    ) -> None:
        """Keep the rows of documents behind one preamble, then evict what was used longest ago."""
        paths = [self._path(decoder, preamble, document) for document in documents]
        for path, entry in zip(paths, rows, strict=True):
            self._remember(path, entry)
        try:
            make_folder(self.folder)
            for path, entry in zip(paths, rows, strict=True):
                named = {_name(shape): array for shape, array in entry.arrays.items()}
                write_checked(path, named, {"format": FORMAT, "log_probability": repr(entry.log_probability)})
        except StorageError as error:
            self._warn("unwritable", f"Documents are not kept: {error}")
        evict(self.folder, SUFFIX, self.max_bytes)

    def _remember(self, path: Path, rows: DocumentRows) -> None:
        """Keep rows in memory as the last ones used; those used longest ago go first."""
        self._recent[path] = rows
        self._recent.move_to_end(path)
        total = sum(entry.nbytes for entry in self._recent.values())
        while total > self.memory_bytes:
            total -= self._recent.popitem(last=False)[1].nbytes

    def _path(self, decoder: Decoder, preamble: Sequence[int], document: Sequence[int]) -> Path:
        """A file named after all that its rows depend on."""
        digest = hashlib.sha256(json.dumps([FORMAT, self._model(decoder), len(preamble)]).encode())
        digest.update(np.asarray([*preamble, *document], dtype="<u4").tobytes())
        return self.folder / f"{digest.hexdigest()[:40]}{SUFFIX}"

    def _model(self, decoder: Decoder) -> str:
        """What tells the decoder's weights and number format from others'."""
        folder = decoder.source
        if folder is None:
            raise InvalidOptionError(
                "A document cache needs a model as it was loaded from a folder, not one made of it."
            )
        if folder not in self._models:
            self._models[folder] = fingerprint(folder)
        return f"{self._models[folder]} {decoder.dtype}"

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning("%s", message)


def _read(path: Path, decoder: Decoder, tokens: int) -> DocumentRows:
    """Raises CheckpointError where the file is damaged or does not hold what this model would write."""
    file = open_checked(path)
    expected = {
        _name((heads, dim)): (2, len(layers), heads, tokens, dim)
        for (heads, dim), layers in layers_by_shape(decoder.config).items()
    }
    try:
        log_probability = float(file.metadata["log_probability"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} does not say how probable its document is.") from None
    if {name: info.shape for name, info in file.tensors.items()} != expected:
        raise CheckpointError(f"{path} does not hold rows of {tokens} tokens.")
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return DocumentRows({_shape(name): array for name, array in arrays.items()}, log_probability)


def _name(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _shape(name: str) -> Shape:
    heads, dim = name.split("x")
    return int(heads), int(dim)
