"""What sampled rows begin with: a word for plain text, the beginning of the user's turn for chats.

An instruct model that is given no more than its template's opening writes what a user might ask, answers it, and goes
on (Magpie, arXiv 2406.08464). Plain text begins with a random word (LLM-QAT, arXiv 2305.17888, begins with a random
token), since an instruct model has few ideas of what may follow an end-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from russet.converters.texts.lockstep import SAMPLED, Plan
from russet.engine.chat_template import ChatTemplate
from russet.engine.errors import TokenizerError
from russet.engine.tokenizer.base import Tokenizer

PLAIN, CHAT = "plain", "chat"


class Openings:
    """Plans of rows; `systems` are system prompts of chats, None the template's own."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        systems: Sequence[str | None],
        vocab_size: int,
    ) -> None:
        texts = [tokenizer.decode([i]) for i in range(vocab_size)]
        self.special = [i for i, text in enumerate(texts) if not text]
        self._words = np.array([i for i, text in enumerate(texts) if _is_word(text)])
        self._prefix = list(tokenizer.prompt_prefix)
        self._chats = [tokenizer.encode(template.frame(system)[0]) for system in systems] if template else []
        if not len(self._words):
            raise TokenizerError("The tokenizer has no token that is a word to begin with; use another model.")

    def plan(self, kinds: Sequence[str], length: int, end: int, rng: np.random.Generator) -> Plan:
        """A plan for rows of these kinds; each ends with the token `end`."""
        tokens = np.full((len(kinds), length), SAMPLED, dtype=np.int32)
        chats = 0
        for row, kind in enumerate(kinds):
            begin = [*self._prefix, int(rng.choice(self._words))]
            if kind == CHAT:
                begin = self._chats[chats % len(self._chats)]
                chats += 1
            tokens[row, : len(begin)] = begin[:length]
        tokens[:, -1] = end
        return Plan(tokens, np.array([kind == PLAIN for kind in kinds]))


def _is_word(text: str) -> bool:
    return text.strip().isalpha() and not text.endswith(" ")


def kinds_of(batch: int, chat: float) -> list[str]:
    """The kinds of a batch's rows, a share of them chats, evenly spread."""
    return [CHAT if int((row + 1) * chat) > int(row * chat) else PLAIN for row in range(batch)]
