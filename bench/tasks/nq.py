"""Question answering over several documents, one of which has the answer (after Lost in the Middle, 2307.03172).

The gold passages are those of its `nq-open-oracle` file. Distractors are gold passages of other questions, so they
are easier to tell apart than the retrieved ones of that paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.scores import contains_answer, normalise
from russet.engine.prompt import Prompt

FILE = "nq_open_oracle.jsonl"
PREAMBLE = (
    "Write a high-quality answer for the given question using only the provided search results "
    "(some of which might be irrelevant)."
)


class NaturalQuestions:
    """`nq:N`: N documents. The gold one moves one place on with every row, round and round.

    Documents carry no numbers, so that a document's text does not depend on its place. The distractors of `nq:5` are
    among those of `nq:10`.
    """

    measure = "answer contained"
    binary = True
    generate = 24
    score = staticmethod(contains_answer)

    def __init__(self, documents: int) -> None:
        self.name = f"nq:{documents}"
        self.documents = documents

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        rows = read_rows(data, FILE, ("question", "answers", "ctxs"))
        golds = [_gold(row, data / FILE, number) for number, row in enumerate(rows, 1)]
        for i, row in enumerate(rows):
            documents = _distractors(i, row["answers"], golds, self.documents - 1)
            documents.insert(i % self.documents, golds[i])
            prompt = Prompt(PREAMBLE, tuple(documents), f"Question: {row['question']}\nAnswer:")
            yield Example(f"{self.name}/{i}", prompt, tuple(row["answers"]))


def _gold(row: dict[str, Any], path: Path, number: int) -> str:
    for passage in row["ctxs"]:
        if passage.get("isgold"):
            return f"Document (Title: {passage['title']}) {passage['text']}"
    raise damaged(path, number, "has no gold passage")


def _distractors(row: int, answers: list[str], golds: list[str], wanted: int) -> list[str]:
    """Gold documents of other rows, none of which has an answer; fewer than `wanted` where there are no more."""
    order = list(range(len(golds)))
    Random(f"nq:{row}").shuffle(order)
    found: list[str] = []
    for other in order:
        if len(found) == wanted:
            break
        if other == row or golds[other] == golds[row] or golds[other] in found:
            continue
        text = f" {normalise(golds[other])} "
        if not any(f" {normalise(answer)} " in text for answer in answers):
            found.append(golds[other])
    return found
