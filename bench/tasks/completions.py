"""Questions whose answer is drawn: the model continues a text, without a chat template."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from russet.bench.quality_metrics import Metric, Values
from russet.bench.tasks.base import TokenCount
from russet.bench.tasks.data import damaged, read_rows
from russet.bench.tasks.items import Drawn
from russet.bench.tasks.scores import normalise, overlap

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SquadCompletion:
    """`squad` (1606.05250): passage and question as lm-evaluation-harness's squadv2 puts them, a reply of one line.

    `contains` is that of its squad_completion 1: an answer stands in the reply, whatever the case of letters. `exact`
    and `f1` are those of SQuAD's own evaluation: of normalised texts and of their words, the best answer counts.
    """

    name = "squad"
    definition = "lm-evaluation-harness's squad_completion 1 (contains) and squadv2 3 (exact, f1) on SQuAD 1.1"
    metrics = (
        Metric("contains", "proportion", "contains"),
        Metric("exact", "proportion", "exact"),
        Metric("f1", "mean", "f1"),
    )
    file = "squad.jsonl"

    def items(self, data: Path, count: TokenCount) -> Iterator[Drawn]:
        for number, row in enumerate(read_rows(data, self.file, ("query", "answers"))):
            passage, asked, question = row["query"].rpartition("\nQuestion: ")
            title, found, background = passage.partition("\nBackground: ")
            if not asked or not found:
                raise damaged(data / self.file, number + 1, "has no background or no question in its query")
            question = question.removesuffix("\nAnswer:")
            prompt = f"{title}\n\nBackground: {background}\n\nQuestion: {question}\n\nAnswer:"
            yield Drawn(f"squad/{number}", prompt, 48, ("\n",), partial(squad_values, answers=row["answers"]))


class TriviaQA:
    """`triviaqa` (1705.03551): questions without a context, answered by one of the known spellings and nothing else."""

    name = "triviaqa"
    definition = "lm-evaluation-harness's triviaqa 3.0, no examples"
    metrics = (Metric("exact_match", "proportion", "exact_match"),)
    file = "triviaqa.jsonl"
    limit = 32
    """Tokens; the harness draws up to 256, but no answer is so long."""

    def items(self, data: Path, count: TokenCount) -> Iterator[Drawn]:
        for number, row in enumerate(read_rows(data, self.file, ("question", "answer"))):
            aliases = row["answer"].get("aliases") if isinstance(row["answer"], dict) else None
            if not aliases:
                raise damaged(data / self.file, number + 1, "has no aliases of its answer")
            # The harness puts a question mark behind questions that end with one already.
            prompt = f"Question: {row['question']}?\nAnswer:"
            values = partial(trivia_values, aliases=aliases)
            yield Drawn(f"triviaqa/{number}", prompt, self.limit, ("\n", ".", ","), values)


def squad_values(reply: str, answers: Sequence[str]) -> Values:
    """`contains`, `exact` and `f1` of a reply."""
    said = normalise(reply)
    wanted = [normalise(answer) for answer in answers]
    return {
        "contains": float(any(re.search(re.escape(answer), reply, re.IGNORECASE) for answer in answers)),
        "exact": float(said in wanted),
        "f1": max((overlap(said.split(), answer.split()) for answer in wanted), default=0.0),
    }


def trivia_values(reply: str, aliases: Sequence[str]) -> Values:
    """1 where the reply is one of the aliases, but for case, punctuation and the space around it."""
    said = _plain(reply.strip())
    return {"exact_match": float(any(said == _plain(alias) for alias in aliases))}


def _plain(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)
