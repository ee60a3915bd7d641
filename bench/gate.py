"""The quality gate: whether lossy modes still do as well as when their levels were recorded, in under two minutes.

No data are needed beside the book that is shipped. A needle test asks for a number hidden in one of several passages;
an agreement test feeds exact prefill's reply to the mode's cache and counts the tokens that the mode would have drawn
as well, so that one early difference does not spoil the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING

from russet.bench.decode import Listener
from russet.bench.prefill_contenders import EXACT, Contender
from russet.bench.prompts import book
from russet.bench.tasks.scores import contains_answer
from russet.engine.generation import check_prompt
from russet.engine.prefill.base import Prefill, PromptTokens, positions_of
from russet.engine.prompt import Prompt

if TYPE_CHECKING:
    from russet.engine.api import Model

PROMPTS = 6
DOCUMENTS = 5
DOCUMENT_CHARACTERS = 250
"""Prompts then have some 450 tokens of SmolLM2's, and four modes take 107 s at 300 tok/s of prefill and 25 tok/s of
decoding."""
GENERATE = 16
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


def measure(model: Model, found: Sequence[Contender], listen: Listener = lambda _: None) -> dict[str, Level]:
    """The level of every contender, exact prefill among them; PromptTooLongError where the context is too short."""
    needles = [(model.prepare(prompt), code) for prompt, code in needle_prompts()]
    requests = [model.prepare(prompt) for prompt in request_prompts()]
    for prompt in (*requests, *(needle for needle, _ in needles)):
        check_prompt(prompt.tokens, model.max_positions - GENERATE)
    (exact,) = [contender.prefill for contender in found if contender.name == EXACT]
    listen("exact replies")
    expected = [_predict(model, exact, prompt)[0] for prompt in requests]
    levels = {}
    for contender in found:
        listen(contender.name)
        needle, note = _needle(model, contender.prefill, needles)
        # Exact prefill's own replies are what the others are held against.
        agreement, other = 1.0, ""
        if contender.name != EXACT:
            agreement, other = _agreement(model, contender.prefill, requests, expected)
        levels[contender.name] = Level(needle, agreement, note or other)
    return levels


def _needle(model: Model, prefill: Prefill, needles: Sequence[tuple[PromptTokens, str]]) -> tuple[float, str]:
    """The share of codes found, and the first note."""
    found = [(_predict(model, prefill, prompt), code) for prompt, code in needles]
    hits = [contains_answer(model.tokenizer.decode(tokens), [code]) for (tokens, _), code in found]
    return sum(hits) / len(hits), next((note for (_, note), _ in found if note), "")


def _agreement(
    model: Model, prefill: Prefill, requests: Sequence[PromptTokens], expected: Sequence[list[int]]
) -> tuple[float, str]:
    """The share of exact prefill's tokens that are drawn after those before them, and the first note."""
    found = [_predict(model, prefill, prompt, reply) for prompt, reply in zip(requests, expected, strict=True)]
    same = [
        ours == theirs
        for (tokens, _), reply in zip(found, expected, strict=True)
        for ours, theirs in zip(tokens, reply, strict=True)
    ]
    return sum(same) / len(same), next((note for _, note in found if note), "")


def _predict(
    model: Model, prefill: Prefill, prompt: PromptTokens, forced: Sequence[int] | None = None
) -> tuple[list[int], str]:
    """The likeliest token at each step, and the strategy's note; `forced` tokens go in instead of those drawn."""
    import mlx.core as mx

    cache = model.decoder.new_cache(model.kv_bits)
    cache.reserve(positions_of(prefill, prompt) + GENERATE)
    prefilled = prefill(model.decoder, prompt, cache)
    step, logits = model.step(cache, prefilled.extend), prefilled.logits
    drawn: list[int] = []
    for i in range(GENERATE):
        drawn += mx.argmax(logits, axis=-1).tolist()  # type: ignore[arg-type]
        if i + 1 < GENERATE:
            logits = step(mx.array([[forced[i] if forced else drawn[i]]]))
    return drawn, prefilled.note


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
    for number in range(PROMPTS):
        code = str(Random(f"gate:{number}").randrange(10_000, 100_000))
        documents = list(passages(number))
        place = number % DOCUMENTS
        documents[place] += f"The secret code is {code}."
        made.append((Prompt(PREAMBLE, tuple(documents), QUESTION), code))
    return made


def request_prompts() -> list[Prompt]:
    """Prompts over other passages than those of the needles."""
    return [Prompt(PREAMBLE, passages(PROMPTS + number), REQUEST) for number in range(PROMPTS)]


def setup_hash() -> str:
    """Tells the gate's prompts and settings from others: levels hold for those that they were measured with."""
    prompts = [asdict(prompt) for prompt in (*(prompt for prompt, _ in needle_prompts()), *request_prompts())]
    return hashlib.sha256(json.dumps([GENERATE, prompts]).encode()).hexdigest()[:16]
