"""Multiple choice as lm-evaluation-harness defines it: the likeliest of some continuations is the model's answer.

`acc` takes the highest log probability, `acc_norm` the highest one over the number of characters. Prompts are those of
the harness's arc_easy 1.0, piqa 1.0, hellaswag 1.0 and boolq 2.0, without examples in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from russet.bench.quality_metrics import Metric, Values
from russet.bench.tasks.base import TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.items import Continuations, Scored

ACC = Metric("acc", "proportion", "acc")
ACC_NORM = Metric("acc_norm", "proportion", "acc_norm")


@dataclass(frozen=True, slots=True)
class Question:
    """A context, the choices that follow it after a space, and which of them is right."""

    context: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class MultipleChoice:
    """One data set: its file, the fields that a row must have, and how a row is read."""

    name: str
    definition: str
    fields: tuple[str, ...]
    read: Callable[[dict[str, Any]], Question]
    metrics: tuple[Metric, ...] = (ACC, ACC_NORM)

    def items(self, data: Path, count: TokenCount) -> Iterator[Continuations]:
        file = f"{self.name}.jsonl"
        for number, row in enumerate(read_rows(data, file, self.fields)):
            try:
                question = self.read(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged(data / file, number + 1, f"is no row of {self.name} ({error!r})") from error
            if not 0 <= question.right < len(question.choices):
                raise damaged(data / file, number + 1, "names a right answer that is not among its choices")
            texts = tuple(f" {choice}" for choice in question.choices)
            yield Continuations(f"{self.name}/{number}", question.context, texts, partial(_values, question))


def _values(question: Question, scored: Sequence[Scored]) -> Values:
    logs = np.array([each.log_probability for each in scored])
    # A choice without a character is as bad as one of one character.
    lengths = np.array([max(1, len(choice)) for choice in question.choices])
    return {
        "acc": float(np.argmax(logs) == question.right),
        "acc_norm": float(np.argmax(logs / lengths) == question.right),
    }


def _arc(row: dict[str, Any]) -> Question:
    choices = row["choices"]
    right = choices["label"].index(row["answerKey"])
    return Question(f"Question: {row['question']}\nAnswer:", tuple(choices["text"]), right)


def _piqa(row: dict[str, Any]) -> Question:
    return Question(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), int(row["label"]))


def _boolq(row: dict[str, Any]) -> Question:
    return Question(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), int(row["answer"]))


def _hellaswag(row: dict[str, Any]) -> Question:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Question(_clean(context), tuple(_clean(ending) for ending in row["endings"]), int(row["label"]))


def _clean(text: str) -> str:
    """Without the marks in brackets that WikiHow's part of the data has."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


_HARNESS = "lm-evaluation-harness's {}, no examples"

MULTIPLE_CHOICE = (
    MultipleChoice("arc_easy", _HARNESS.format("arc_easy 1.0"), ("question", "choices", "answerKey"), _arc),
    MultipleChoice("piqa", _HARNESS.format("piqa 1.0"), ("goal", "sol1", "sol2", "label"), _piqa),
    MultipleChoice(
        "hellaswag", _HARNESS.format("hellaswag 1.0"), ("activity_label", "ctx_a", "ctx_b", "endings"), _hellaswag
    ),
    MultipleChoice("boolq", _HARNESS.format("boolq 2.0"), ("passage", "question", "answer"), _boolq, (ACC,)),
)
