"""How a run reports how far it is, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Hears of tasks, and of training's steps."""

    def task(self, label: str) -> None:
        """Something else than training begins."""
        ...

    def training(self, steps: int, done: int, tokens: int) -> None:
        """Training begins: `done` of `steps` steps are there already, each of `tokens` tokens."""
        ...

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        """A step is done, with its terms of the loss."""
        ...

    def finish(self) -> None:
        """Training has ended, complete or not."""
        ...


class Silent:
    """Shows nothing."""

    def task(self, label: str) -> None:
        pass

    def training(self, steps: int, done: int, tokens: int) -> None:
        pass

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass
