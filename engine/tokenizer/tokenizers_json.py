"""tokenizer.json, through Hugging Face's `tokenizers` library."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import tokenizers

from russet.engine.detokenizer import REPLACE_EACH_BYTE, Fragment, FragmentStream, TextStream, WindowStream
from russet.engine.errors import TokenizerError
from russet.engine.tokenizer.base import NEWLINE_TOKEN, Tokenizer, prepare
from russet.engine.tokenizer.settings import TokenizerSettings

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizersJson(Tokenizer):
    """Byte-level BPE (Llama 3, Qwen, SmolLM2), BPE with byte fallback (Llama 2, Gemma), or any other decoder.

    `clean_up_tokenization_spaces` is left aside on purpose: it changes what the model wrote (" ." becomes ".").
    Where a run of byte-fallback tokens is not valid UTF-8, `tokenizers` gives up the whole run, which cannot be
    known before the run ends; here the valid characters in it are kept.
    """

    def __init__(self, path: Path, settings: TokenizerSettings):
        self._tokenizer = _read(path)
        self._lock = Lock()
        self._is_afm = settings.is_afm
        self._fragments: dict[int, Fragment] = {}
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = max([self._tokenizer.get_vocab_size(), *(id + 1 for id in added)])
        self.token_names = dict(settings.token_names)
        self.prompt_prefix, self.bos_id = self._beginning(settings)
        named = [self.token_id(self.token_names.get("eos_token", ""))]
        named += [self.token_id("<turn_end>")] if settings.is_afm else []
        self.eos_ids = settings.eos_ids | {id for id in named if id is not None}
        self._decoder_kind, self._leading_spaces = _decoder_kind(self._tokenizer.decoder)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        text = prepare(text, is_afm=self._is_afm)
        with self._lock:  # the flag belongs to the shared object, not to the call
            self._tokenizer.encode_special_tokens = not special
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def text_stream(self, *, skip_special: bool = True) -> TextStream:
        skipped = self._special_ids if skip_special else frozenset()
        if self._decoder_kind == "other":
            decoder = self._tokenizer.decoder
            decode = decoder.decode if decoder is not None else " ".join
            return WindowStream(lambda id: None if id in skipped else self._token(id), decode)
        errors = "replace" if self._decoder_kind == "byte-level" else REPLACE_EACH_BYTE
        return FragmentStream(
            lambda id: None if id in skipped else self._fragment(id),
            leading_spaces=self._leading_spaces,
            errors=errors,
        )

    def _token(self, id: int) -> str | None:
        token = self._tokenizer.id_to_token(id) if 0 <= id < self.vocab_size else None
        return "\n" if self._is_afm and token == NEWLINE_TOKEN else token

    def _fragment(self, id: int) -> Fragment:
        if id not in self._fragments:
            token = self._token(id)
            split = _byte_level_fragment if self._decoder_kind == "byte-level" else _byte_fallback_fragment
            self._fragments[id] = None if token is None else split(token)
        return self._fragments[id]

    def _beginning(self, settings: TokenizerSettings) -> tuple[tuple[int, ...], int | None]:
        """What a raw prompt begins with, and the BOS id.

        The file's post-processor decides, unless tokenizer_config.json has `add_bos_token`. A suffix (EOS) that the
        post-processor adds is left out: the model is to go on from the prompt.
        """
        whole = self._tokenizer.encode("a").ids
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        starts = [k for k in range(len(whole)) if whole[k : k + len(plain)] == plain]
        prefix = tuple(whole[: starts[0]]) if plain and starts else ()
        bos_id = self.token_id(settings.token_names.get("bos_token", ""))
        if bos_id is None:
            return prefix, prefix[0] if len(prefix) == 1 else None
        if settings.add_bos is None:
            return prefix, bos_id
        return ((bos_id,) if settings.add_bos else ()), bos_id


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the library raises the base class
        raise TokenizerError(
            f"{path} is not a tokenizer that the `tokenizers` library can read ({error}); fetch the file again."
        ) from error
    # Training settings that some files keep; a prompt must be neither cut nor filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _decoder_kind(decoder: Any) -> tuple[str, int]:
    """Which of the three ways to text a file's decoder takes, and how many leading spaces it strips."""
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    if state.get("type") == "ByteLevel":
        return "byte-level", 0
    match state.get("decoders"):
        case [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *rest,
        ]:
            if not rest:
                return "byte-fallback", 0
            if len(rest) == 1 and rest[0].get("type") == "Strip":
                strip = rest[0]
                if strip["content"] == " " and strip["stop"] == 0:
                    return "byte-fallback", strip["start"]
    return "other", 0


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE writes bytes as: GPT-2's encoder.py, `bytes_to_unicode`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level_fragment(token: str) -> bytes:
    table = _byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:  # an added token, which is kept as plain text
        return token.encode()


def _byte_fallback_fragment(token: str) -> bytes | str:
    if match := BYTE_TOKEN.fullmatch(token):
        byte = bytes([int(match[1], 16)])
        return " " if byte == b" " else byte  # as text, because the decoder's Strip sees this space too
    return token.replace("▁", " ")
