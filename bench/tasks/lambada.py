"""LAMBADA (1606.06031): the last word of a passage, as lm-evaluation-harness's lambada_openai 1.0 scores it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from russet.bench.quality_metrics import Metric, Values
from russet.bench.tasks.base import TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.items import Continuations, Scored

FILE = "lambada.jsonl"


class Lambada:
    """`lambada`: perplexity of the last word, all of its tokens together, and how often greedy decoding draws it."""

    name = "lambada"
    definition = "lm-evaluation-harness's lambada_openai 1.0"
    metrics = (Metric("acc", "proportion", "acc"), Metric("perplexity", "perplexity", "log_probability"))

    def items(self, data: Path, count: TokenCount) -> Iterator[Continuations]:
        for number, row in enumerate(read_rows(data, FILE, ("query", "answer"))):
            answers = row["answer"]
            if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], str):
                raise damaged(data / FILE, number + 1, "does not have one word as its answer")
            yield Continuations(f"lambada/{number}", row["query"], (f" {answers[0]}",), _values)


def _values(scored: Sequence[Scored]) -> Values:
    (word,) = scored
    return {"acc": float(word.greedy), "log_probability": word.log_probability}
