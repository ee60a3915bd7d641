"""The tasks of `russet bench quality` by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from russet.bench.quality_metrics import Metric, Values
from russet.bench.tasks import parse_task
from russet.bench.tasks.base import Example, Task, TokenCount
from russet.bench.tasks.choices import MULTIPLE_CHOICE
from russet.bench.tasks.completions import SquadCompletion, TriviaQA
from russet.bench.tasks.items import Drawn, QualityTask
from russet.bench.tasks.lambada import Lambada
from russet.bench.tasks.wikitext import WikiText
from russet.engine.errors import InvalidOptionError

NEEDLE = "needle:1024"
"""What `needle` stands for."""

_PLAIN: dict[str, Callable[[], QualityTask]] = {
    "wikitext": WikiText,
    "lambada": Lambada,
    **{task.name: partial(lambda task: task, task) for task in MULTIPLE_CHOICE},
    "triviaqa": TriviaQA,
    "squad": SquadCompletion,
}

USAGE = (*_PLAIN, "wikitext:WINDOW", "needle", "needle:TOKENS", "nq:DOCUMENTS", "kv:PAIRS", "multi_news")


def parse_quality_task(name: str) -> QualityTask:
    """The task that a name such as `piqa` or `nq:1` stands for; InvalidOptionError where there is none."""
    if name in _PLAIN:
        return _PLAIN[name]()
    kind, _, size = name.partition(":")
    if kind == "wikitext" and size.isascii() and size.isdigit() and int(size) > 1:
        return WikiText(int(size))
    if kind not in _PLAIN:
        try:
            return Answered(parse_task(NEEDLE if name == "needle" else name))
        except InvalidOptionError:
            pass
    raise InvalidOptionError(f"There is no task {name!r}; choose among {', '.join(USAGE)}.")


class Answered:
    """A task of `russet bench prefill`, its prompts and its score."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = task.name
        self.definition = f"Russet's own: {task.measure}, {task.generate} tokens"
        self.metrics = (Metric("score", "proportion" if task.binary else "mean", "score"),)

    def items(self, data: Path, count: TokenCount) -> Iterator[Drawn]:
        for example in self.task.examples(data, count):
            yield Drawn(example.id, example.prompt, self.task.generate, (), partial(self._values, example))

    def _values(self, example: Example, reply: str) -> Values:
        return {"score": self.task.score(reply, example.answers)}
