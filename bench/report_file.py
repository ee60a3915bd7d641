"""Reading what `--json` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from russet.engine.errors import BenchmarkDataError

Report = TypeVar("Report")


def read_report_file(path: Path, schema: str, build: Callable[[dict[str, Any]], Report]) -> Report:
    """A report of one schema; BenchmarkDataError where the file is none, or of another schema, or not whole."""
    raw = read_object(path)
    if raw.get("schema") != schema:
        raise BenchmarkDataError(f"{path} has the schema {raw.get('schema')!r}; a file with {schema!r} is expected.")
    with whole_reports(path):
        return build(raw)


@contextmanager
def whole_reports(*paths: Path) -> Iterator[None]:
    """Read or show reports: what a value of another kind than was written leads to becomes BenchmarkDataError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        found, reason = " or ".join(map(str, paths)), repr(error)[:_MOST_QUOTED]
        raise BenchmarkDataError(f"{found} is not a whole report ({reason}); measure again.") from error


_MOST_QUOTED = 120


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; BenchmarkDataError where there is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkDataError(f"{path} cannot be read ({error.strerror}); name a file of --json.") from error
    except ValueError as error:
        raise BenchmarkDataError(f"{path} cannot be read as JSON ({error}); name a file of --json.") from error
    return raw if isinstance(raw, dict) else {}
