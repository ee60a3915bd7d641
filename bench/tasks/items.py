"""The contract of a task of `russet bench quality`: rows of a data set become items, and a model's work on them values.

An item says what is to be computed, in text. Three kinds are enough: continuations that are scored, a text that is
scored from its beginning, and a reply that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from russet.bench.quality_metrics import Metric, Values
from russet.bench.tasks.base import TokenCount
from russet.engine.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of a continuation: log probability in nats, whether greedy decoding would draw it."""

    log_probability: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Continuations:
    """A context and texts that may follow it; `values` takes what was said of each, in order."""

    id: str
    context: str
    continuations: tuple[str, ...]
    values: Callable[[Sequence[Scored]], Values]


@dataclass(frozen=True, slots=True)
class RunningText:
    """A text of which every token is scored, in windows of at most `window` tokens; `values` are known beforehand."""

    id: str
    text: str
    window: int
    values: Values


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt and its greedy reply of at most `limit` tokens, up to any of the texts in `stop`.

    A string is a text to continue; a `Prompt` is one user turn through the model's chat template, if it has one.
    `values` takes the reply.
    """

    id: str
    prompt: str | Prompt
    limit: int
    stop: tuple[str, ...]
    values: Callable[[str], Values]


Item = Continuations | RunningText | Drawn


class QualityTask(Protocol):
    """Items in the order of the file, the same in every run. `definition` says whose definition the numbers follow."""

    name: str
    definition: str
    metrics: tuple[Metric, ...]

    def items(self, data: Path, count: TokenCount) -> Iterator[Item]:
        """Raises BenchmarkDataError where a file is missing or not as expected."""
        ...
