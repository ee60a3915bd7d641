"""Passages of prose out of shards of token ids: whole sentences that end at a chosen number of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from russet.converters.recipes.corpus import HELD_OUT
from russet.engine.errors import TrainingDataError
from russet.engine.tokenizer.base import Tokenizer

PROSE = 0.93
"""The share of letters, spaces and common punctuation in a passage: code, tables and formulas have less."""

TRIES = 400
MARGIN = 80
"""Tokens read beyond a passage, so that a sentence can end in them."""

_END = re.compile(r"(?<=[.!?])[\"'”’)]?\s+(?=[\"'“‘(]?[A-Z])")
_COMMON = re.compile(r"[\w\s.,;:!?'\"“”‘’()—-]", re.ASCII)
_WORDS = (6, 40)
"""Words of a sentence that is worth asking for."""


@dataclass(frozen=True)
class Passage:
    """Token ids of a text, and whole sentences that stand in it once."""

    tokens: list[int]
    sentences: list[str]


class Passages:
    """Passages drawn from the shards of a folder; uint16 ids.

    Raises TrainingDataError for a folder without shards, and where no prose is found.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, end: int, dtype: str = "<u2") -> None:
        paths = [path for path in sorted(folder.glob("*.bin")) if path.name != HELD_OUT and path.stat().st_size]
        if not paths:
            raise TrainingDataError(f"{folder} has no *.bin with token ids; give the folder that holds the shards.")
        self._folder = folder
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        self._weights = np.array([len(shard) for shard in self._shards], dtype=np.float64)
        self._weights /= self._weights.sum()
        self._tokenizer, self._end = tokenizer, end

    def draw(self, tokens: int, rng: np.random.Generator, sentences: int = 0, front: int = 0) -> Passage:
        """A passage of exactly `tokens` tokens with at least so many sentences behind its first `front` tokens.

        It ends with a sentence, and may begin within one.
        """
        for _ in range(TRIES):
            shard = self._shards[rng.choice(len(self._shards), p=self._weights)]
            start = int(rng.integers(0, max(1, len(shard) - tokens - MARGIN)))
            found = self._passage(np.asarray(shard[start : start + tokens + MARGIN]), tokens, front)
            if found is not None and len(found.sentences) >= sentences:
                return found
        raise TrainingDataError(
            f"{self._folder} gave no passage of prose of {tokens} tokens in {TRIES} tries; give longer running text in "
            "English."
        )

    def _passage(self, ids: np.ndarray, tokens: int, front: int) -> Passage | None:
        if (ids == self._end).any():
            return None
        text = self._tokenizer.decode(ids.tolist())
        if len(_COMMON.findall(text)) < PROSE * len(text):
            return None
        ends = [found.start() for found in _END.finditer(text)]
        if not ends:
            return None
        kept = self._tokenizer.encode(text[: ends[-1]], special=False)[-tokens:]
        if len(kept) < tokens:
            return None
        return Passage(kept, _sentences(self._tokenizer.decode(kept[front:]), self._tokenizer.decode(kept)))


def _sentences(part: str, text: str) -> list[str]:
    """Whole sentences of a part, of a length that is worth asking for, that stand in the text once."""
    parts = [" ".join(part.split()) for part in _END.split(part)[1:]]
    flat = " ".join(text.split())
    return [part for part in parts if _WORDS[0] <= len(part.split()) <= _WORDS[1] and flat.count(part) == 1]
