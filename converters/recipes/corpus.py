"""Training text: a folder of token ids, and a fixed random order of windows over it.

Every `*.bin` in the folder is a shard, but `val.bin`, which is held out. `corpus.json`, where it is there, may name the
tokenizer by the SHA-256 of its tokenizer.json (`tokenizer_sha256`), and the number format of the ids (`dtype`), "<u2"
or "<u4"; little-endian uint16 otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from russet.converters.recipes.base import Batch
from russet.engine.errors import TrainingDataError

HELD_OUT = "val.bin"
DESCRIPTION = "corpus.json"
DTYPES = ("<u2", "<u4")


class Windows:
    """Windows of `length` + 1 ids, each beginning with the last id of the one before, inside one shard."""

    def __init__(self, shards: list[Path], length: int, dtype: str = "<u2") -> None:
        self.length = length
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in shards]
        counts = [max(0, (len(shard) - 1) // length) for shard in self._shards]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, indices: np.ndarray) -> Batch:
        """The windows with these numbers."""
        rows = np.stack([self._window(int(index)) for index in indices]).astype(np.int32)
        return Batch(mx.array(rows[:, :-1]), mx.array(rows[:, 1:]))

    def _window(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = (index - (int(self._ends[shard - 1]) if shard else 0)) * self.length
        return self._shards[shard][start : start + self.length + 1]


class Corpus:
    """A data folder, checked, and what is drawn from it.

    Raises TrainingDataError for a folder without shards, a shard that is cut, ids that the model does not have, and
    ids of another tokenizer where the folder says which.
    """

    def __init__(self, folder: Path, length: int, vocab_size: int, tokenizer: Path | None = None) -> None:
        self.folder = folder
        shards = sorted(path for path in folder.glob("*.bin") if path.name != HELD_OUT)
        if not shards:
            raise TrainingDataError(
                f"{folder} holds neither token ids (*.bin, beside val.bin) nor text (*.txt, *.jsonl); give a folder "
                "that does."
            )
        held_out = [folder / HELD_OUT] if (folder / HELD_OUT).exists() else []
        dtype = _described(folder, tokenizer)
        for path in [*shards, *held_out]:
            _check_shard(path, vocab_size, np.dtype(dtype))
        self.shards = shards
        self.train = Windows(shards, length, dtype)
        self.held_out = Windows(held_out, length, dtype)
        if not len(self.train):
            raise TrainingDataError(f"The text is shorter than a window of {length + 1} tokens; give more of it.")

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The batch of a step: each epoch goes through all windows once, in an order that seed and epoch decide."""
        count = len(self.train)
        places = np.arange(step * size, (step + 1) * size)
        picked = np.empty(size, dtype=np.int64)
        for epoch in np.unique(places // count):
            order = np.random.Generator(np.random.Philox(key=[seed, int(epoch)])).permutation(count)
            inside = places // count == epoch
            picked[inside] = order[places[inside] % count]
        return self.train.take(picked)

    def first(self, size: int, tokens: int) -> Iterator[Batch]:
        """About `tokens` tokens of the training text, evenly spread over it."""
        count = min(len(self.train), math.ceil(tokens / self.train.length))
        picked = np.linspace(0, len(self.train) - 1, count).astype(np.int64)
        for start in range(0, count, size):
            yield self.train.take(picked[start : start + size])

    def held_out_batches(self, size: int, tokens: int) -> Iterator[Batch]:
        """The first windows of `val.bin`, about `tokens` tokens of them."""
        count = min(len(self.held_out), math.ceil(tokens / self.held_out.length))
        for start in range(0, count, size):
            yield self.held_out.take(np.arange(start, min(start + size, count)))

    def fingerprint(self) -> str:
        """A hash of the shards' names and contents, which a checked corpus has been read for already."""
        digest = hashlib.sha256()
        for path in self.shards:
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()


def _check_shard(path: Path, vocab_size: int, dtype: np.dtype) -> None:
    size = path.stat().st_size
    if not size or size % dtype.itemsize:
        raise TrainingDataError(
            f"{path} has {size} bytes, not a whole number of {8 * dtype.itemsize}-bit ids above zero: it is cut; "
            "copy it again."
        )
    ids = np.memmap(path, dtype=dtype, mode="r")
    largest = int(ids.max())
    if largest >= vocab_size:
        raise TrainingDataError(
            f"{path} holds token id {largest}, but the model has {vocab_size} tokens only; tokenise the text with the "
            "model's own tokenizer."
        )


def _described(folder: Path, tokenizer: Path | None) -> str:
    """The number format of the ids; what `corpus.json` says of the tokenizer is compared."""
    path = folder / DESCRIPTION
    if not path.exists():
        return DTYPES[0]
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        dtype, wanted = described.get("dtype", DTYPES[0]), described.get("tokenizer_sha256")
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingDataError(f"{path} is not a JSON object ({error}); mend it or remove it.") from error
    if dtype not in DTYPES:
        raise TrainingDataError(f"{path} has dtype {dtype!r}; it must be {' or '.join(DTYPES)}.")
    if tokenizer is not None and wanted is not None:
        found = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        if found != wanted:
            raise TrainingDataError(
                f"{folder} was tokenised with another tokenizer (SHA-256 {str(wanted)[:12]}...) than the model's "
                f"({found[:12]}...); tokenise the text with the model's own."
            )
    return dtype
