"""A model without weights for the commands: it answers with what its prompt asks for.

Run as a program, this is the `russet` command on that model, for tests of signals, pipes and terminals.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import russet
from russet.engine.errors import PromptTooLongError, SessionFileError
from russet.engine.reply import Piece, Reply
from russet.engine.timing import Timings

CARD = "fake: llama, 3 parameters, 12 B, float32"


def make_reply(text: str, finish_reason: str = "stop", **changes: Any) -> Reply:
    timings = Timings(
        load_s=0.5,
        ttft_s=0.21,
        prefill_s=0.2,
        prefill_tps=3120.4,
        decode_tps=61.42,
        cached_tokens=380,
        token_times_s=[],
    )
    fields = {
        "text": text,
        "tokens": list(range(len(text.split()))),
        "prompt_tokens": 9,
        "finish_reason": finish_reason,
        "exact": True,
        "timings": timings,
        "peak_memory_bytes": 2_100_000_000,
        "strategy": "exact",
    }
    return Reply(**{**fields, **changes})


def pieces_for(prompt: str) -> Iterator[Piece]:
    """Words of the reply that the prompt asks for, the last piece with the whole reply."""
    order, _, rest = prompt.partition(" ")
    if order == "toolong":
        raise PromptTooLongError("The prompt has 9000 tokens, but the model's context holds 2048; shorten it.")
    if order == "boom":
        raise ZeroDivisionError("division\nby zero")
    if order == "slowly":
        yield Piece("begun", 0, None)
        time.sleep(0.5)
    if order == "prefill":
        print("prefilling", file=sys.stderr, flush=True)
        time.sleep(30)
    text = rest if order in ("say", "cut", "noted") else f"You said: {prompt}"
    words = text.split(" ")
    for i, word in enumerate(words):
        yield Piece(word if i == 0 else f" {word}", i, None)
    while order == "forever":
        time.sleep(0.01)
        yield Piece(" more", 1, None)
    note = f"It does not apply to {len(text)} letters." if order == "noted" else ""
    yield Piece("", None, make_reply(text, "length" if order == "cut" else "stop", note=note))


class FakeSession:
    def __init__(self, system: str | None) -> None:
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.options: dict[str, Any] = {}
        self.cached_tokens = 7
        self.prefill: Any = None
        self.last_reply: Reply | None = None

    @property
    def system(self) -> str | None:
        return next((m["content"] for m in self.messages if m["role"] == "system"), None)

    def stream(self, text: str, **options: Any) -> Iterator[Piece]:
        self.options = options
        pieces = pieces_for(text)
        said = ""
        self.last_reply = None
        try:
            for piece in pieces:
                said += piece.text
                self.last_reply = piece.reply or make_reply(said, "interrupted")
                yield piece
        finally:
            if said:
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]

    def regenerate(self, **options: Any) -> Iterator[Piece]:
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        return self.stream(question, **options)

    def clear(self) -> None:
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def save(self, path: Path) -> None:
        Path(path).write_text(json.dumps(self.messages))


class FakeModel:
    def __init__(self, name: str = "fake", **load_options: Any) -> None:
        self.name = name
        self.load_options = load_options
        self.card = CARD
        self.max_positions = 2048
        self.sessions: list[FakeSession] = []
        self.options: dict[str, Any] = {}

    def stream(self, prompt: str, **options: Any) -> Iterator[Piece]:
        self.options = options
        yield from pieces_for(prompt)

    def generate(self, prompt: str, **options: Any) -> Reply:
        reply = [piece.reply for piece in self.stream(prompt, **options)][-1]
        assert reply is not None
        return reply

    def session(self, system: str | None = None, **options: Any) -> FakeSession:
        self.sessions.append(FakeSession(system))
        self.sessions[-1].prefill = options.get("prefill")
        return self.sessions[-1]

    def load_session(self, path: Path, *, options: Any = None, prefill: Any = None) -> FakeSession:
        if not Path(path).exists():
            raise SessionFileError(f"There is no file {path}; save a conversation first.")
        session = self.session()
        session.messages = json.loads(Path(path).read_text())
        return session


def load(name: str, **options: Any) -> FakeModel:
    if name == "slow-load":
        print("loading", file=sys.stderr, flush=True)
        time.sleep(30)
    if name == "unflushed":
        print("something left in the buffer")
        click.get_current_context().exit(0)
    return FakeModel(name, **options)


if __name__ == "__main__":
    from russet.engine.cli import main

    russet.load = load
    main(prog_name="russet")
