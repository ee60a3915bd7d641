"""Key-value retrieval (Lost in the Middle, 2307.03172): the value of one key in a JSON object of random UUIDs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.scores import contains_answer
from russet.engine.prompt import Prompt

FILE = "kv_retrieval_75.jsonl"
PREAMBLE = "Extract the value corresponding to the specified key in the JSON object below."


class KeyValue:
    """`kv:N`: the first N pairs of a row, the one asked for at a place that moves on by one with every row.

    A UUID takes some 31 tokens and a reply may name the key first, so more are drawn than for a name. The object is no
    set of documents: one line of it means nothing to a strategy that scores documents.
    """

    measure = "value contained"
    binary = True
    generate = 80
    score = staticmethod(contains_answer)

    def __init__(self, pairs: int) -> None:
        self.name = f"kv:{pairs}"
        self.pairs = pairs

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        rows = read_rows(data, FILE, ("ordered_kv_records", "key", "value"))
        for i, row in enumerate(rows):
            others = [pair for pair in row["ordered_kv_records"] if pair[0] != row["key"]]
            if len(others) < self.pairs - 1:
                raise damaged(data / FILE, i + 1, f"has {len(others) + 1} pairs of the {self.pairs} asked for")
            pairs = others[: self.pairs - 1]
            pairs.insert(i % self.pairs, [row["key"], row["value"]])
            lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
            query = f'Key: "{row["key"]}"\nCorresponding value:'
            prompt = Prompt(f"{PREAMBLE}\n\nJSON data:\n{{{lines}}}", (), query)
            yield Example(f"{self.name}/{i}", prompt, (row["value"],))
