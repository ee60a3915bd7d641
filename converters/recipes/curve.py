"""The curve of a run: a CSV with a row a step, and a plot of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from russet.engine.errors import CheckpointError, MissingDependencyError
from russet.engine.storage import writing

WINDOW = 20
"""Steps that the plotted line averages."""


class Curve:
    """Rows of numbers by step, kept in memory and written whole."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    @classmethod
    def read(cls, path: Path, steps: int) -> Curve:
        """The first `steps` rows of a CSV; none where there is no file. Raises CheckpointError for a damaged one."""
        curve = cls()
        if path.exists():
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    rows = [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(file)]
                if any("step" not in row or "seconds" not in row for row in rows):
                    raise ValueError("a row without its step and seconds")
            except (OSError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path} is no curve of a recipe ({error}); delete it and resume.") from error
            curve.rows = rows[:steps]
        return curve

    def add(self, step: int, tokens: int, seconds: float, terms: dict[str, float]) -> None:
        self.rows.append({"step": step, "tokens": tokens, "seconds": round(seconds, 3), **terms})

    def text(self) -> str:
        """The CSV."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: f"{x:.6g}" for name, x in row.items()} for row in self.rows])
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the CSV beside `path` and put it in its place. Raises StorageError."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            with writing(path):
                partial.write_text(self.text(), encoding="utf-8")
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def plot(self, path: Path, title: str) -> None:
        """Draw the loss and its terms against tokens. Raises MissingDependencyError without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingDependencyError("matplotlib is not installed; install russet[plot] for the plot.") from None
        skipped = {"step", "tokens", "seconds", "rate", "gradient"}
        names = [name for name in dict.fromkeys(n for row in self.rows for n in row) if name not in skipped]
        figure = Figure(figsize=(7, 1 + 2 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            points = [(row["tokens"] / 1e6, row[name]) for row in self.rows if name in row]
            panel.plot(*zip(*points, strict=True), color="#56B4E9", linewidth=0.4)
            panel.plot(*zip(*_smoothed(points), strict=True), color="#0072B2", linewidth=1.4)
            panel.set_ylabel(name)
            panel.grid(alpha=0.3)
        panels[-1].set_xlabel("million tokens")
        panels[0].set_title(title)
        with writing(path):
            figure.savefig(path, dpi=110)


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    means = []
    for i in range(len(points)):
        near = points[max(0, i - WINDOW + 1) : i + 1]
        means.append((points[i][0], sum(y for _, y in near) / len(near)))
    return means
