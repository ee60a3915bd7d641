"""Tasks that price a lossy mode, one a file; the contract is in base.py.

A task's name may carry one number: `nq:10` is question answering over 10 documents.
"""

from __future__ import annotations

from collections.abc import Callable

from russet.bench.tasks.base import Task
from russet.bench.tasks.key_value import KeyValue
from russet.bench.tasks.multi_news import MultiNews
from russet.bench.tasks.needle import Needle
from russet.bench.tasks.nq import NaturalQuestions
from russet.bench.tasks.squad import Squad
from russet.engine.errors import InvalidOptionError

_PLAIN: dict[str, Callable[[], Task]] = {"squad": Squad, "multi_news": MultiNews}
_SIZED: dict[str, Callable[[int], Task]] = {"nq": NaturalQuestions, "needle": Needle, "kv": KeyValue}

USAGE = ("nq:DOCUMENTS", "squad", "needle:TOKENS", "kv:PAIRS", "multi_news")


def parse_task(name: str) -> Task:
    """The task that a name such as `squad` or `nq:10` stands for; InvalidOptionError where there is none."""
    kind, colon, size = name.partition(":")
    if kind in _PLAIN and not colon:
        return _PLAIN[kind]()
    if kind in _SIZED and size.isascii() and size.isdigit() and int(size) > 0:
        return _SIZED[kind](int(size))
    raise InvalidOptionError(f"There is no task {name!r}; choose among {', '.join(USAGE)}.")
