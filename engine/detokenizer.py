"""Token ids -> text as they arrive: whole characters only, a constant amount of work a token.

`Tokenizer.decode` is the same streams run to the end, so what was streamed and what is decoded later cannot differ.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from russet.engine.tokenizer import Tokenizer

Fragment = bytes | str | None
"""What one token adds: bytes of a character that may go on, text that ends such a character, or nothing at all."""

REPLACEMENT = "\ufffd"
REPLACE_EACH_BYTE = "russet.replace-each-byte"

# A character is at most four bytes; anything that stays undecodable for longer is not an incomplete character.
MAX_PENDING_TOKENS = 4
MAX_CONTEXT_TOKENS = 16


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


# SentencePiece and `tokenizers`' byte fallback write one replacement character for every stray byte, where Python's
# own "replace" writes one for the longest valid beginning of a character.
codecs.register_error(REPLACE_EACH_BYTE, _replace_each_byte)


class TextStream(Protocol):
    """Ids in, text out; what `add` returned is final, and `finish` returns what was held back."""

    def add(self, token: int) -> str: ...
    def finish(self) -> str: ...


class FragmentStream:
    """For tokenizers whose tokens each stand for fixed bytes or text: byte-level BPE, SentencePiece, byte fallback.

    `fragment` maps an id to its `Fragment`. `leading_spaces` is how many spaces may be dropped where the text begins,
    which undoes the space that such a tokenizer puts before a text; they are taken from `str` fragments only.
    `errors` is a codec error handler.
    """

    def __init__(self, fragment: Callable[[int], Fragment], *, leading_spaces: float = 0, errors: str = "replace"):
        self._fragment = fragment
        self._leading_spaces = leading_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def add(self, token: int) -> str:
        fragment = self._fragment(token)
        if fragment is None:
            return ""
        if isinstance(fragment, bytes):
            return self._emit(self._utf8.decode(fragment))
        return self._emit(self.finish()) + self._emit(self._strip(fragment))

    def finish(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest

    def _strip(self, text: str) -> str:
        while self._leading_spaces and text.startswith(" "):
            text = text[1:]
            self._leading_spaces -= 1
        return text

    def _emit(self, text: str) -> str:
        if text:
            self._leading_spaces = 0
        return text


class WindowStream:
    """For any other decoder: the text of a short window of tokens, less the text of its beginning.

    `decode` maps token strings to text; it may treat the first token of a text, and neighbours, in its own way.
    `token` maps an id to its string, or to None where it is left out. The method is that of
    text-generation-inference's `decode_token` (prefix and read offset), over a window of bounded length.
    """

    def __init__(self, token: Callable[[int], str | None], decode: Callable[[Sequence[str]], str]):
        self._token = token
        self._decode = decode
        self._context: list[str] = []
        self._context_text = ""
        self._pending: list[str] = []

    def add(self, token: int) -> str:
        text = self._token(token)
        if text is None:
            return ""
        self._pending.append(text)
        if not self._text_of(self._pending).endswith(REPLACEMENT):
            return self._advance(len(self._pending))
        return self._advance(1) if len(self._pending) == MAX_PENDING_TOKENS else ""

    def finish(self) -> str:
        return self._advance(len(self._pending))

    def _text_of(self, tokens: list[str]) -> str:
        return self._decode([*self._context, *tokens])[len(self._context_text) :]

    def _advance(self, count: int) -> str:
        """Give out the text of the first `count` pending tokens, and make them the context."""
        tokens, self._pending = self._pending[:count], self._pending[count:]
        new = self._text_of(tokens)
        # A context without text of its own would not tell the decoder that the text has begun.
        self._context = tokens if self._decode(tokens) else [*self._context, *tokens][-MAX_CONTEXT_TOKENS:]
        self._context_text = self._decode(self._context)
        return new


class StreamDetokenizer:
    """The text of a reply, token by token.

    The strings that `add` and `finish` return, joined, equal `tokenizer.decode` of all ids; none of them splits a
    character. Ids that the tokenizer does not know add nothing: a padded vocabulary makes them possible.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._stream = tokenizer.text_stream(skip_special=skip_special)

    def add(self, token: int) -> str:
        """The text that is final now that `token` has come; empty while a character is incomplete."""
        return self._stream.add(token)

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD."""
        return self._stream.finish()
