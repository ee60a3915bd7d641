"""Prefill and decode speed of several contenders in one process, their runs alternating."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from russet.bench.base import Contender, Measurement
from russet.bench.prompts import Prompt

WARM_UP_TOKENS = 8

Listener = Callable[[str], None]
"""Told in words what runs next."""


@dataclass
class LengthResult:
    """All finished runs at one prompt length: contender name -> measurements, in the order of the rounds."""

    prompt_tokens: int
    generate: int
    runs: dict[str, list[Measurement]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every contender has finished at least one run."""
        return bool(self.runs) and all(self.runs.values())

    def first_difference(self, one: str, other: str) -> int | None:
        """The index of the first generated token in which two contenders differ, or None where all are the same."""
        ours, theirs = self.runs[one][0].tokens, self.runs[other][0].tokens
        return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


class Named(Protocol):
    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Named)
R = TypeVar("R")


def order_of_round(contenders: Sequence[C], number: int) -> list[C]:
    """A B, B A, A B, ...: drift in the machine's speed then favours nobody."""
    return list(contenders) if number % 2 == 0 else list(reversed(contenders))


def rounds(
    contenders: Sequence[C],
    run: Callable[[C, int], R],
    *,
    generate: int,
    repeat: int,
    what: str,
    listen: Listener = lambda _: None,
) -> Iterator[tuple[C, R]]:
    """Let contenders take turns, after one short run each that is not counted; every run comes out as it is finished.

    `run` takes a contender and the number of tokens to draw; `what` says to the listener what they work on.
    """
    for contender in contenders:
        listen(f"{what}, {contender.name}, warm-up")
        run(contender, min(WARM_UP_TOKENS, generate))
    for number in range(repeat):
        for contender in order_of_round(contenders, number):
            listen(f"{what}, {contender.name}, {number + 1} of {repeat}")
            yield contender, run(contender, generate)


def run_decode(
    contenders: Sequence[Contender],
    prompts: Sequence[Prompt],
    *,
    generate: int,
    repeat: int,
    results: list[LengthResult],
    listen: Listener = lambda _: None,
) -> None:
    """Time every contender `repeat` times at every prompt.

    Finished runs are added to `results` as they come, so that an interrupted benchmark keeps them.
    """
    for prompt in prompts:
        result = LengthResult(len(prompt.tokens), generate, {contender.name: [] for contender in contenders})
        results.append(result)

        def run(contender: Contender, tokens: int, prompt: Prompt = prompt) -> Measurement:
            return contender.run(prompt.tokens, tokens)

        what = f"{len(prompt.tokens)} tokens"
        for contender, measured in rounds(contenders, run, generate=generate, repeat=repeat, what=what, listen=listen):
            result.runs[contender.name].append(measured)
