"""Tables for people: drawn by rich on a terminal, Markdown everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables and notes as Markdown."""
    parts = []
    for table in tables:
        lines = [f"**{table.title}**", "", _row(table.header), _row(("---",) * len(table.header))]
        parts.append("\n".join([*lines, *(_row(row) for row in table.rows)]))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def show(tables: Sequence[Table], notes: Sequence[str], *, terminal: bool) -> None:
    """Print tables and notes; Markdown as well where rich is not installed."""
    if terminal:
        with suppress(ImportError):
            return _draw(tables, notes)
    print(markdown(tables, notes))


def _draw(tables: Sequence[Table], notes: Sequence[str]) -> None:
    from rich import table as rich_table
    from rich.console import Console

    console = Console()
    for table in tables:
        drawn = rich_table.Table(title=table.title)
        for i, name in enumerate(table.header):
            drawn.add_column(name, justify="right" if i else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for note in notes:
        console.print(note, markup=False, highlight=False, style="dim")
