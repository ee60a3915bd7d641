"""A conversation: messages, the tokens whose rows are in the KV cache, and turns that prefill only what is new."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine import session_file
from russet.engine.cache import KVCache
from russet.engine.errors import EmptyPromptError, InvalidOptionError
from russet.engine.generation import Run, check_prompt, generate
from russet.engine.options import GenerationOptions
from russet.engine.prefill.base import Prefill, PromptTokens, positions_of
from russet.engine.prefill.exact import Exact
from russet.engine.reply import Piece, Reply
from russet.engine.timing import Stopwatch

if TYPE_CHECKING:
    from russet.engine.api import Model


class Session:
    """A conversation with one model; `messages` holds what was said, the system message included.

    Between turns the cache holds exact rows only. A turn with a lossy strategy starts from them, and what it adds is
    forgotten at its end, the reply's rows included: they were computed from approximate ones.
    """

    def __init__(
        self, model: Model, system: str | None, options: GenerationOptions, prefill: Prefill | None = None
    ) -> None:
        self.model = model
        self.options = options
        self.prefill = prefill or Exact()
        model.load_for(self.prefill)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.cache: Any = model.decoder.new_cache(model.kv_bits)
        self.cached: list[int] = []
        """The tokens whose rows the cache holds, in order."""
        self.last_reply: Reply | None = None
        """The last turn's reply, also where its stream was closed early; None where not even prefill was through."""

    @property
    def system(self) -> str | None:
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @property
    def cached_tokens(self) -> int:
        return len(self.cached)

    def respond(self, text: str, **overrides: Any) -> Reply:
        """Say something and wait for the whole reply; `overrides` as in `Model.stream`."""
        *_, last = self.stream(text, **overrides)
        assert last.reply is not None
        return last.reply

    def stream(self, text: str, **overrides: Any) -> Generator[Piece, None, None]:
        """Say something and take the reply piece by piece.

        Nothing changes if the prompt is refused. Closing the generator early keeps what was said so far.
        """
        if not isinstance(text, str):
            raise InvalidOptionError(f"The message is of type {type(text).__name__}; give it as text.")
        if not text.strip():
            raise EmptyPromptError("The message is empty; write something for the model to answer.")
        return self._turn([*self.messages, {"role": "user", "content": text}], overrides)

    def regenerate(self, **overrides: Any) -> Generator[Piece, None, None]:
        """Answer the last user message anew, in place of the last reply."""
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            raise InvalidOptionError("There is no message to answer again yet; say something first.")
        return self._turn(self.messages[: last + 1], overrides)

    def clear(self, system: str | None = None) -> None:
        """Forget the conversation; a new system message may be given, otherwise the present one stays."""
        system = self.system if system is None else system
        self.messages = [{"role": "system", "content": system}] if system else []

    def save(self, path: str | Path) -> None:
        """Write messages and cache to one file, atomically; `Model.load_session` goes on from it."""
        session_file.save(self, Path(path))

    @classmethod
    def load(cls, model: Model, path: Path, options: GenerationOptions, prefill: Prefill | None = None) -> Session:
        """What `save` wrote; `Model.load_session` is the way to it."""
        session = cls(model, None, options, prefill)
        session_file.restore(session, path)
        return session

    def _turn(self, messages: list[dict[str, str]], overrides: dict[str, Any]) -> Generator[Piece, None, None]:
        from russet.engine.api import merge_options

        watch = Stopwatch()
        options = merge_options(self.options, overrides)
        prompt = self.model.prepare_chat(messages)
        check_prompt(prompt.tokens, self.model, positions_of(self.prefill, prompt))
        watch.tokenised()
        return self._speak(messages, prompt, options, watch)

    def _speak(
        self, messages: list[dict[str, str]], prompt: PromptTokens, options: GenerationOptions, watch: Stopwatch
    ) -> Generator[Piece, None, None]:
        self._rewind(prompt.tokens)
        run, prefill = Run(), self.prefill
        try:
            yield from generate(self.model, prompt, options, prefill, watch, self.cache, run)
        finally:
            # The loop may be one token ahead of what was handed out, and prefill may have been cut short.
            said = [*prompt.tokens, *run.tokens]
            exact = prefill.exact or run.exact_rows
            self._keep(said[: self.cache.next_position] if exact else self.cached)
            self.last_reply = run.reply
            # A turn that was stopped before its first word leaves no trace.
            if run.tokens or (run.reply and run.reply.finish_reason != "interrupted"):
                self.messages = [*messages, {"role": "assistant", "content": run.text}]

    def _rewind(self, tokens: Sequence[int]) -> None:
        """Keep the cached rows of the longest common prefix; at least the last token is left to compute."""
        common = 0
        for ours, wanted in zip(self.cached, tokens[:-1], strict=False):
            if ours != wanted:
                break
            common += 1
        self._keep(self.cached[:common])

    def _keep(self, tokens: list[int]) -> None:
        """Forget all rows but those of `tokens`, with which the cached sequence begins."""
        if tokens and self.cache.trim(len(tokens)):
            self.cached = tokens
            if isinstance(self.cache, KVCache):
                # Exact rows are consecutive again, whatever a strategy put behind them.
                for slot in self.cache.slots.values():
                    slot.restore(slot.first)
        else:
            self.cache, self.cached = self.model.decoder.new_cache(self.model.kv_bits), []
