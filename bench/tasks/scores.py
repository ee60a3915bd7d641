"""Scores of an output against acceptable answers, each from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus space, as SQuAD's evaluation does (1606.05250)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains_answer(output: str, answers: Sequence[str]) -> float:
    """1 where a normalised answer is part of the normalised output: "best subspan accuracy" of 2307.03172.

    Whole words are compared, so that 3 is not found in 1932; an answer that normalises to nothing is never found.
    """
    said = f" {normalise(output)} "
    wanted = [normalise(answer) for answer in answers]
    return float(any(answer and f" {answer} " in said for answer in wanted))


def rouge1(output: str, references: Sequence[str]) -> float:
    """F1 of the words that output and reference share, each counted as often as both have it (ROUGE-1, Lin 2004).

    Words are runs of letters and digits in lower case, unstemmed; of several references the best counts.
    """
    return max((overlap(_words(output), _words(reference)) for reference in references), default=0.0)


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def overlap(one: Iterable[str], other: Iterable[str]) -> float:
    """F1 of the words that two texts share, each counted as often as both have it; 0 where they share none."""
    ours, theirs = Counter(one), Counter(other)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0
