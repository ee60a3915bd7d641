"""How slow work (a download, a conversion) reports how far it is, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener of one task after another; amounts are bytes.

    A task is `start`, any number of `advance`, then `finish`, also when the task fails.
    """

    def start(self, label: str, total: int | None) -> None:
        """Open a task; `total` is None where the size is not known beforehand."""
        ...

    def advance(self, n: int) -> None:
        """Count `n` more bytes as done, for instance those that a resumed download found on disk."""
        ...

    def finish(self) -> None:
        """Close the task, complete or not; without an open task, do nothing."""
        ...


class SilentProgress:
    """The listener that shows nothing, for `progress or SilentProgress()`."""

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def finish(self) -> None:
        pass
