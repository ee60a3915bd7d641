"""The contract of a tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from russet.engine.detokenizer import TextStream
from russet.engine.errors import TokenizerError

# Apple Foundation Models write a line break as this token (`tamm.tokenizers.afm`, mlx-lm's NewlineTokenizer).
NEWLINE_TOKEN = "<n>"


class Tokenizer(ABC):
    """Text <-> token ids.

    bos_id        begin-of-sequence token, or None
    eos_ids       tokens that end a reply
    vocab_size    one more than the highest id; a model's embedding may be padded beyond it
    prompt_prefix ids that a raw prompt begins with: the BOS token, where this tokenizer adds one
    token_names   the strings that chat templates know as `bos_token`, `eos_token`, ...
    """

    bos_id: int | None
    eos_ids: frozenset[int]
    vocab_size: int
    prompt_prefix: tuple[int, ...]
    token_names: Mapping[str, str]

    @abstractmethod
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`, without BOS.

        With `special`, a special token's text becomes that token; without, it is text like any other.
        Raises TokenizerError where the text is not valid Unicode (half of a surrogate pair).
        """

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of the token spelled exactly so, or None."""

    @abstractmethod
    def text_stream(self, *, skip_special: bool = True) -> TextStream:
        """A fresh stream that turns ids into text."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a raw prompt, begun with `prompt_prefix` unless the text spells it out already."""
        ids = self.encode(text)
        prefix = list(self.prompt_prefix)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; special tokens are left out unless `skip_special` is False, unknown ids always."""
        stream = self.text_stream(skip_special=skip_special)
        return "".join([*map(stream.add, ids), stream.finish()])


def prepare(text: str, *, is_afm: bool) -> str:
    """`text` as the tokenizer libraries take it. Raises TokenizerError where it is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"The text holds {text[error.start]!r}, half of a surrogate pair, which bytes that are not UTF-8 become; "
            "give valid Unicode text."
        ) from error
    return text.replace("\n", NEWLINE_TOKEN) if is_afm else text
