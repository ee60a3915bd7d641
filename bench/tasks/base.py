"""The contract of a task: rows of a public data set become prompts in parts, each with answers and a scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from russet.engine.prompt import Prompt

Scorer = Callable[[str, Sequence[str]], float]
"""(output, acceptable answers) -> a score from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row: `id` is the same in every run, so that strategies are compared row by row.

    The prompt is one user turn in parts, and all strategies get the same tokens of it.
    """

    id: str
    prompt: Prompt
    answers: tuple[str, ...]


class TokenCount(Protocol):
    """How many tokens a prompt becomes, chat template included."""

    def __call__(self, prompt: Prompt) -> int: ...


class Task(Protocol):
    """Deterministic examples, and how an output is scored."""

    name: str
    measure: str
    """What the score is, in a few words."""
    binary: bool
    """Whether every score is 0 or 1."""
    generate: int
    """Greedy tokens that are drawn and scored."""
    score: Scorer

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        """The rows in the file's order. Raises BenchmarkDataError where the file is missing or not as expected."""
        ...
