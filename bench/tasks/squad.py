"""SQuAD (1606.05250): a question about one passage, which holds the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.scores import contains_answer
from russet.engine.prompt import Prompt

FILE = "squad.jsonl"


class Squad:
    """`squad`: title and passage are the one document."""

    name = "squad"
    measure = "answer contained"
    binary = True
    generate = 24
    score = staticmethod(contains_answer)

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        for number, row in enumerate(read_rows(data, FILE, ("query", "answers")), 1):
            document, mark, question = row["query"].rpartition("\nQuestion:")
            if not mark:
                raise damaged(data / FILE, number, "has no question in its query")
            yield Example(f"squad/{number - 1}", Prompt("", (document,), mark + question), tuple(row["answers"]))
