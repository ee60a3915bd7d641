"""The quality gate: whether lossy modes still do as well as when their levels were recorded, in under two minutes.

No data are needed beside the book that is shipped. A needle test asks for a number hidden in one of several passages;
an agreement test feeds exact prefill's reply to the mode's cache and counts the tokens that the mode would have drawn
as well, so that one early difference does not spoil the rest. Exact prefill draws that reply token by token and then
reads it in one pass as the others do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from russet.bench.decode import Listener
from russet.bench.prefill_contenders import EXACT, Contender
from russet.bench.prompts import book
from russet.bench.tasks.scores import contains_answer
from russet.engine.generation import check_prompt
from russet.engine.prefill.base import Prefill, PromptTokens, positions_of
from russet.engine.prompt import Prompt

if TYPE_CHECKING:
    from russet.engine.api import Model

NEEDLES = ((5, "179"), (11, "816"), (2, "946"), (8, "591"), (9, "648"))
"""Places in the book and codes, one for each of the passages that may hold it. Exact prefill of SmolLM2-135M finds all
of them: a prompt that it fails on says nothing of the others."""
REQUESTS = (6, 7)
"""Places in the book."""
DOCUMENTS = 5
DOCUMENT_CHARACTERS = 220
"""Prompts then have some 400 tokens of SmolLM2's."""
DRAFT = "1.0"
"""SpecPrefill's, a share of the layers: of half of them, chunks drawn at random do as well in SmolLM2-135M."""
NEEDLE_TOKENS = 16
REPLY_TOKENS = 40
"""Drawn by exact prefill alone; the others read them in one pass."""
BOOK_STEP = 23_000
"""Characters of the book from one prompt's passages to the next one's."""

PREAMBLE = "Read these passages of a book."
QUESTION = "What is the secret code mentioned in one of the passages? Answer with the code."
REQUEST = "Tell in one sentence what happens in the passages."


@dataclass(frozen=True, slots=True)
class Level:
    """Shares from 0 to 1: of needles found, and of exact prefill's tokens that the mode draws as well.

    `note`, where a mode did not run, says why.
    """

    needle: float
    agreement: float
    note: str = ""

    def to_dict(self) -> dict[str, float | str]:
        return asdict(self)


class _Run:
    """A prompt that a strategy has prefilled."""

    def __init__(self, model: Model, prefill: Prefill, prompt: PromptTokens) -> None:
        self._model = model
        self._rows = len(prompt.tokens)
        self._cache = model.decoder.new_cache(model.kv_bits)
        self._cache.reserve(positions_of(prefill, prompt) + max(NEEDLE_TOKENS, REPLY_TOKENS))
        self._prefilled = prefill(model.decoder, prompt, self._cache)
        self.note = self._prefilled.note

    def draw(self, limit: int) -> list[int]:
        """The first greedy tokens, of which the last is not in the cache."""
        step = self._model.step(self._cache, self._prefilled.extend)
        logits, drawn = self._prefilled.logits, []
        for i in range(limit):
            drawn.append(_likeliest(logits)[0])
            if i + 1 < limit:
                logits = step(mx.array([drawn[-1:]]))
        return drawn

    def undo(self) -> bool:
        """Forget what exact prefill's reply left in the cache; False where that cannot be done."""
        return self._cache.trim(self._rows)

    def agreement(self, reply: list[int]) -> float:
        """The share of a reply's tokens that are likeliest after those before them, all read in one pass."""
        own = _likeliest(self._prefilled.logits)
        if self._prefilled.extend is not None:
            step = self._model.step(self._cache, self._prefilled.extend)
            own += [_likeliest(step(mx.array([[token]])))[0] for token in reply[:-1]]
        else:
            logits = self._model.decoder.extend(mx.array([reply[:-1]]), self._cache, len(reply) - 1)
            assert logits is not None
            own += _likeliest(logits[0])
        return sum(ours == theirs for ours, theirs in zip(own, reply, strict=True)) / len(reply)


def measure(model: Model, found: Sequence[Contender], listen: Listener = lambda _: None) -> dict[str, Level]:
    """The level of every contender, exact prefill among them; PromptTooLongError where the context is too short."""
    needles = [(model.prepare(prompt), code) for prompt, code in needle_prompts()]
    requests = [model.prepare(prompt) for prompt in request_prompts()]
    for prompt in (*requests, *(needle for needle, _ in needles)):
        check_prompt(prompt.tokens, model, reply=max(NEEDLE_TOKENS, REPLY_TOKENS))
    (exact,) = [contender.prefill for contender in found if contender.name == EXACT]
    listen("exact replies")
    replies, own = zip(*(_exact_reply(model, exact, prompt) for prompt in requests), strict=True)
    levels = {}
    for contender in found:
        listen(contender.name)
        needle, note = _needle(model, contender.prefill, needles)
        agreement, other = sum(own) / len(own), ""
        if contender.name != EXACT:
            agreement, other = _agreement(model, contender.prefill, requests, replies)
        levels[contender.name] = Level(needle, agreement, note or other)
    return levels


def _exact_reply(model: Model, exact: Prefill, prompt: PromptTokens) -> tuple[list[int], float]:
    """Exact prefill's reply, drawn token by token, and its agreement with itself when that is read in one pass."""
    run = _Run(model, exact, prompt)
    reply = run.draw(REPLY_TOKENS)
    if not run.undo():
        run = _Run(model, exact, prompt)
    return reply, run.agreement(reply)


def _needle(model: Model, prefill: Prefill, needles: Sequence[tuple[PromptTokens, str]]) -> tuple[float, str]:
    """The share of codes found, and the first note."""
    hits, notes = [], []
    for prompt, code in needles:
        run = _Run(model, prefill, prompt)
        hits.append(contains_answer(model.tokenizer.decode(run.draw(NEEDLE_TOKENS)), [code]))
        notes.append(run.note)
    return sum(hits) / len(hits), next(filter(None, notes), "")


def _agreement(
    model: Model, prefill: Prefill, requests: Sequence[PromptTokens], replies: Sequence[list[int]]
) -> tuple[float, str]:
    """The share of exact prefill's tokens that are drawn after those before them, and the first note."""
    shares, notes = [], []
    for prompt, reply in zip(requests, replies, strict=True):
        run = _Run(model, prefill, prompt)
        shares.append(run.agreement(reply))
        notes.append(run.note)
    return sum(shares) / len(shares), next(filter(None, notes), "")


def _likeliest(logits: mx.array) -> list[int]:
    """The highest logit's token in each row [rows, vocab]."""
    return mx.argmax(logits, axis=-1).tolist()  # type: ignore[return-value]


def passages(number: int) -> tuple[str, ...]:
    """`DOCUMENTS` consecutive passages of the book, each of whole lines; another place for every `number`."""
    lines = re.sub(r"\n{2,}", "\n", book()[1000:]).splitlines()
    start = number * BOOK_STEP % (sum(map(len, lines)) // 2)
    found, passage = [], ""
    for line in lines:
        start -= len(line)
        if start > 0:
            continue
        passage += line.strip() + "\n"
        if len(passage) >= DOCUMENT_CHARACTERS:
            found.append(passage)
            passage = ""
        if len(found) == DOCUMENTS:
            break
    return tuple(found)


def needle_prompts() -> list[tuple[Prompt, str]]:
    """Prompts with a code in one passage, which is another one every time, and the codes."""
    made = []
    for number, code in NEEDLES:
        documents = list(passages(number))
        documents[number % DOCUMENTS] += f"The secret code is {code}."
        made.append((Prompt(PREAMBLE, tuple(documents), QUESTION), code))
    return made


def request_prompts() -> list[Prompt]:
    """Prompts over other passages than those of the needles."""
    return [Prompt(PREAMBLE, passages(number), REQUEST) for number in REQUESTS]


def setup_hash() -> str:
    """Tells the gate's prompts and settings from others: levels hold for those that they were measured with."""
    prompts = [asdict(prompt) for prompt in (*(prompt for prompt, _ in needle_prompts()), *request_prompts())]
    return hashlib.sha256(json.dumps([NEEDLE_TOKENS, REPLY_TOKENS, DRAFT, prompts]).encode()).hexdigest()[:16]
