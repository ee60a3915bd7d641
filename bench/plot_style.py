"""What all plots have in common; matplotlib is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.errors import MissingDependencyError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any common colour blindness tell apart; each has a marker of its own too.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#7F7F7F", "X"),
)


def require_matplotlib() -> None:
    """Raise MissingDependencyError unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "matplotlib is not installed, so nothing can be drawn; install russet[plot] or leave out --plot."
        ) from None


def style(index: int) -> tuple[str, str]:
    """Colour and marker."""
    return STYLES[index % len(STYLES)]


def tidy(panel: Any) -> None:
    """A light grid and no frame above and to the right."""
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def device_name(environment: dict[str, Any]) -> str:
    """The device that computed, for titles."""
    return str(environment["gpu"] or environment["cpu"] or "an unknown CPU")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, SVG or PDF file; StorageError where that fails."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be written ({error}); name a .png, .svg or .pdf file.") from error
