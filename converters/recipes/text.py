"""Text files -> the shards of token ids that recipes train on, made once and kept in the cache.

A `.txt` file is a document, and so is the field `text` of every line of a `.jsonl` file. Documents end with the
tokenizer's end-of-text token and are cut into pieces of at most 8192 ids, which are shuffled; every hundredth piece is
held out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from russet.converters.recipes.corpus import DESCRIPTION, HELD_OUT
from russet.converters.writer import staged_folder
from russet.engine.errors import TrainingDataError
from russet.engine.paths import texts_dir
from russet.engine.storage import exclusive, make_folder, writing
from russet.engine.tokenizer import load_tokenizer
from russet.engine.tokenizer.base import Tokenizer

SUFFIXES = (".txt", ".jsonl")
PIECE = 8192
HELD_OUT_EVERY = 100
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
"""End-of-text tokens of the families, in the order in which they are looked for."""


def token_folder(data: Path, model: Path) -> Path:
    """The folder of shards for `data`: itself where it holds shards, or what its text becomes in a model's tokens.

    Raises TrainingDataError for a path that does not exist, or text that cannot be read, StorageError.
    """
    if not data.exists():
        raise TrainingDataError(
            f"{data} does not exist; give a folder of token ids (*.bin) or of text (*.txt, *.jsonl)."
        )
    files = [data] if data.is_file() else sorted(path for path in data.iterdir() if path.suffix in SUFFIXES)
    if data.is_dir() and (any(data.glob("*.bin")) or not files):
        return data
    tokenizer = model / "tokenizer.json"
    if not tokenizer.exists():
        raise TrainingDataError(f"{model} has no tokenizer.json; give a folder of token ids (*.bin) in its tokens.")
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([sha256, states]).encode()).hexdigest()[:16]
    folder = make_folder(texts_dir()) / key
    with exclusive(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _write(files, load_tokenizer(model), sha256, folder)
    return folder


def _write(files: list[Path], tokenizer: Tokenizer, sha256: str, folder: Path) -> None:
    kind = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    end = next((token for name in ENDS if (token := tokenizer.token_id(name)) is not None), None)
    pieces = [piece for text in _documents(files) for piece in _pieces(tokenizer, text, end)]
    order = np.random.default_rng(0).permutation(len(pieces))
    every = min(HELD_OUT_EVERY, len(pieces))
    parts = {"train_00.bin": [], HELD_OUT: []}
    for place, index in enumerate(order):
        held_out = every > 1 and place % every == every - 1
        parts[HELD_OUT if held_out else "train_00.bin"].append(pieces[index])
    with staged_folder(folder, sum(map(len, pieces)) * np.dtype(kind).itemsize) as staged, writing(staged):
        for name, found in parts.items():
            if found:
                np.concatenate(found).astype(kind).tofile(staged / name)
        described = {"tokenizer_sha256": sha256, "dtype": kind}
        (staged / DESCRIPTION).write_text(json.dumps(described) + "\n", encoding="utf-8")


def _documents(files: list[Path]) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix == ".txt":
                yield file.read_text(encoding="utf-8")
                continue
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    yield _text_of(line, file, number)
        except OSError as error:
            raise TrainingDataError(f"{file} could not be read ({error.strerror}).") from error
        except UnicodeDecodeError:
            raise TrainingDataError(f"{file} is not UTF-8 text; convert it.") from None


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise TrainingDataError(f"Line {number} of {file} is not a JSON object with a field 'text'; mend it.")
    return text


def _pieces(tokenizer: Tokenizer, text: str, end: int | None) -> Iterator[np.ndarray]:
    ids = np.array(tokenizer.encode(text, special=False) + ([] if end is None else [end]), dtype=np.uint32)
    for start in range(0, len(ids), PIECE):
        yield ids[start : start + PIECE]
