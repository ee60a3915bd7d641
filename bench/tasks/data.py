"""Reading evaluation data, which is not part of Russet: the caller names its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from russet.engine.errors import BenchmarkDataError


def read_text(folder: Path, name: str) -> str:
    """A text file of the data folder, which is not blank."""
    if not folder.is_dir():
        raise BenchmarkDataError(f"{folder} is not a folder; name the one that holds the evaluation data.")
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BenchmarkDataError(
            f"{folder} has no {name}; put the file there (docs/benchmarks.md says where it comes from) or leave its "
            "task out."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkDataError(f"{path} is not readable UTF-8 text ({error}); fetch it again.") from error
    if not text.strip():
        raise BenchmarkDataError(f"{path} holds no text; fetch it again.")
    return text


def read_rows(folder: Path, name: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, each of which must have `fields`."""
    rows = []
    for number, line in enumerate(read_text(folder, name).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise damaged(folder / name, number, f"is not JSON ({error})") from error
        missing = [field for field in fields if not isinstance(row, dict) or field not in row]
        if missing:
            raise damaged(folder / name, number, f"has no {missing[0]!r}")
        rows.append(row)
    return rows


def damaged(path: Path, line: int, what: str) -> BenchmarkDataError:
    """The error for a line that is not what the data set's rows look like."""
    return BenchmarkDataError(f"Line {line} of {path} {what}; fetch the file again.")
