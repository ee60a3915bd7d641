"""Documents that a prompt is asked about: one file each, or one line each of a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from russet.engine.cli.stdin import utf8_text
from russet.engine.errors import InvalidOptionError


def read_documents(paths: Iterable[Path]) -> list[str]:
    """The documents in `paths`, in order: a file's text, or the `text` of every line of a `.jsonl` file.

    Raises PromptEncodingError for a file that is not UTF-8, InvalidOptionError for a line without a text, and where
    there is no document at all.
    """
    documents: list[str] = []
    for path in paths:
        text = utf8_text(path.read_bytes(), str(path))
        if path.suffix.lower() != ".jsonl":
            documents.append(text)
            continue
        lines = enumerate(text.splitlines(), 1)
        documents += [_text_of(path, number, line) for number, line in lines if line.strip()]
    if not any(document.strip() for document in documents):
        raise InvalidOptionError("The files given as documents hold no text; give at least one that does.")
    return documents


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    text = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise InvalidOptionError(f'{path}, line {number}, is not a JSON object with a text, as in {{"text": "..."}}.')
    return text
