"""Summaries of several news articles about one event (Multi-News, 1906.01749, in LongBench's selection, 2308.14508)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.data import read_rows
from russet.bench.tasks.scores import rouge1
from russet.engine.prompt import Prompt

FILE = "multi_news.jsonl"
PREAMBLE = "You are given several news passages. Write a one-page summary of all news.\n\nNews:"
QUERY = "Now, write a one-page summary of all the news.\nSummary:"


class MultiNews:
    """`multi_news`: one document a passage.

    Only the beginning of a summary is drawn, so the score stays far below published ones for whole summaries; it is
    to be compared with exact prefill's and with nothing else.
    """

    name = "multi_news"
    measure = "ROUGE-1 F1 of the first 64 tokens"
    binary = False
    generate = 64
    score = staticmethod(rouge1)

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        for i, row in enumerate(read_rows(data, FILE, ("context", "answers"))):
            text = row["context"].replace("NEWLINE_CHAR", "\n")
            passages = re.split(r"(?=^Passage \d+:$)", text, flags=re.MULTILINE)
            prompt = Prompt(PREAMBLE, tuple(passage for passage in passages if passage.strip()), QUERY)
            yield Example(f"multi_news/{i}", prompt, tuple(row["answers"]))
