"""Which strategies are measured: names such as `lazyllm:0.5`, and what only measurements need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from russet.bench.truncate import Truncate
from russet.engine.errors import InvalidOptionError
from russet.engine.prefill import strategies
from russet.engine.prefill.base import Prefill
from russet.engine.prefill.importance import LastRow
from russet.engine.prefill.lazyllm import LazyLLM

CACHED = "+cached"
"""Ends the name of a strategy whose documents are computed, unmeasured, before every measured run."""

EXACT = "exact"

LAST_ROW = "lazyllm-last-row"
"""LazyLLM ranking as the paper does, by one layer's attention of the last token, averaged over heads."""

Parse = Callable[..., Prefill]
"""(a strategy's name, settings by keyword) -> the strategy, as engine/prefill/strategies.py has it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A strategy under the name that was asked for; `primed` ones run once, unmeasured, before every measured run."""

    name: str
    prefill: Prefill
    primed: bool = False


def contenders(
    names: Sequence[str], documents: Path, draft: str | None = None, parse: Parse = strategies.parse
) -> list[Contender]:
    """Exact prefill first, since every other strategy is compared with it, then the others as named, each once.

    `documents` is the folder for document caches, one a strategy; `draft` is SpecPrefill's. Raises InvalidOptionError
    where a name stands for nothing.
    """
    return [_contender(name, documents, draft, parse) for name in dict.fromkeys([EXACT, *names])]


def _contender(name: str, documents: Path, draft: str | None, parse: Parse) -> Contender:
    kind, _, keep = name.removesuffix(CACHED).partition(":")
    if kind == "truncate" and not name.endswith(CACHED):
        return Contender(name, Truncate(_share(name, keep)))
    if kind == LAST_ROW and not name.endswith(CACHED):
        ranked = parse(f"lazyllm:{keep}" if keep else "lazyllm")
        assert isinstance(ranked, LazyLLM)
        return Contender(name, LazyLLM(schedule=ranked.schedule, scorer=LastRow()))
    settings = {"draft": draft} if draft is not None and kind == "specprefill" else {}
    if not name.endswith(CACHED):
        return Contender(name, parse(name, **settings))
    folder = documents / name.replace(":", "-")
    return Contender(name, parse(name.removesuffix(CACHED), documents=folder, **settings), primed=True)


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidOptionError(f"{name!r} names no share of the prompt to keep; write truncate:0.5.") from None
