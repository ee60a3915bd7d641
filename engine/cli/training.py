"""What a terminal or a log shows of a training run, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from russet.engine.timing import now

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_S = 15.0


class BarListener:
    """A bar with the loss, the speed and the time left, drawn by rich."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._begun = 0.0
        self._tokens = 0

    def task(self, label: str) -> None:
        if self._bar is None:
            self._open(None)
        assert self._bar is not None and self._task is not None
        self._bar.update(self._task, description=label)

    def training(self, steps: int, done: int, tokens: int) -> None:
        self.finish()
        self._open(steps, done)
        self._begun, self._tokens = now(), 0

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        assert self._bar is not None and self._task is not None
        self._tokens += tokens
        text = f"loss {terms['loss']:.4f}, {self._tokens / (now() - self._begun):,.0f} tokens/s"
        self._bar.update(self._task, completed=step, description=text)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _open(self, total: int | None, done: int = 0) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("Training", total=total, completed=done)


class LineListener:
    """For logs and pipes: a line each quarter of a minute."""

    def __init__(self) -> None:
        self._begun = self._said = now()
        self._steps = self._tokens = 0

    def task(self, label: str) -> None:
        if now() - self._said >= EVERY_S:
            self._say(label)

    def training(self, steps: int, done: int, tokens: int) -> None:
        self._begun, self._steps, self._tokens = now(), steps, 0
        self._say(f"training, step {done} of {steps}")

    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        self._tokens += tokens
        if now() - self._said >= EVERY_S or step == self._steps:
            rate = self._tokens / (now() - self._begun)
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            self._say(f"step {step} of {self._steps}: {numbers}; {rate:,.0f} tokens/s")

    def finish(self) -> None:
        pass

    def _say(self, text: str) -> None:
        self._said = now()
        click.echo(f"russet: {text}", err=True)
