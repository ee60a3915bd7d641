"""What `russet convert` prints in the end, of a folder as of a package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def show_conversion(values: dict[str, Any], notes: Iterable[str], table: str, summary: str, *, as_json: bool) -> None:
    """`values` as one JSON object; or notes on standard error, the table unless it is empty, and the summary."""
    if as_json:
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        click.echo(json.dumps(plain, ensure_ascii=False))
        return
    for note in notes:
        click.echo(f"russet: note: {note}", err=True)
    if table:
        click.echo(table)
    click.echo(summary)
