"""Perplexity of WikiText-2's articles (1609.07843), as lm-evaluation-harness's wikitext 2.0 defines it.

Articles, their count of words and bytes, and the text that the model gets are those of the harness: words and bytes of
an article as it is in the file, log probabilities of the detokenised text. What the file writes as `<unk>` stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from russet.bench.quality_metrics import Metric
from russet.bench.tasks.base import TokenCount
from russet.bench.tasks.data import read_text
from russet.bench.tasks.items import RunningText

FILE = "wikitext2_valid.txt"
WINDOW = 2048


class WikiText:
    """`wikitext:WINDOW`: rolling windows of so many tokens, each scored after one token of the text before it.

    `continuation_perplexity`, an own measure, is there for prefill strategies as well: the first half of a window, or
    all of it that an earlier window scored, goes through the strategy, and the tokens after it are scored.
    """

    definition = "lm-evaluation-harness's wikitext 2.0; continuation_perplexity is Russet's own"
    metrics = (
        Metric("word_perplexity", "perplexity", "log_probability", "words"),
        Metric("byte_perplexity", "perplexity", "log_probability", "bytes"),
        Metric("bits_per_byte", "bits", "log_probability", "bytes"),
        Metric("continuation_perplexity", "perplexity", "continuation_log_probability", "continuation_tokens"),
    )

    def __init__(self, window: int = WINDOW) -> None:
        self.name = "wikitext" if window == WINDOW else f"wikitext:{window}"
        self.window = window

    def items(self, data: Path, count: TokenCount) -> Iterator[RunningText]:
        for number, article in enumerate(articles(read_text(data, FILE))):
            sizes = {"words": float(len(re.split(r"\s+", article))), "bytes": float(len(article.encode()))}
            yield RunningText(f"{self.name}/{number}", detokenised(article), self.window, sizes)


def articles(text: str) -> Iterator[str]:
    """The articles of the file, each from its heading of the first level (` = Title = `) on."""
    lines: list[str] = []
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "".join(lines).strip():
                yield "\n".join(lines)
            lines = []
        lines.append(line)
    if "".join(lines).strip():
        yield "\n".join(lines)


def detokenised(text: str) -> str:
    """Running text again: the steps of the harness's `wikitext_detokenizer`, in their order."""
    for old, new in _MARKS:
        text = text.replace(old, new)
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        start, end = re.escape(opening), re.escape(closing)
        text = re.sub(rf"{start}\s*([^{end}]*?)\s*{end}", rf"{opening}\1{closing}", text)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


_MARKS = (
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_REST = (
    *((" ".join("=" * count), "=" * count) for count in (4, 3, 2)),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
