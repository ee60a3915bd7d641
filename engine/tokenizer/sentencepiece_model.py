"""tokenizer.model, through Google's `sentencepiece` library: OpenELM, Llama 2, Gemma, Apple Foundation Models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from russet.engine.detokenizer import REPLACE_EACH_BYTE, Fragment, FragmentStream, TextStream
from russet.engine.errors import TokenizerError
from russet.engine.tokenizer.base import NEWLINE_TOKEN, Tokenizer, prepare
from russet.engine.tokenizer.settings import AddedToken, TokenizerSettings

SPACE = "▁"
# A private-use character is no part of any piece, so the pieces after it are those of a text that goes on.
MARK = "\ue0f0"


class SentencePieceModel(Tokenizer):
    """Pieces from the model; special tokens are its control pieces and those that the settings add.

    BOS begins a raw prompt unless `add_bos_token` is false, as Llama's tokenizer has it. The space that a model puts
    before a text stands before the first word only, not again after each special token, unless tokenizer_config.json
    has `legacy: true`.
    """

    def __init__(self, path: Path, settings: TokenizerSettings):
        self._model = _read(path)
        self._is_afm = settings.is_afm
        self._prefix_every_segment = settings.prefix_every_segment
        self._pieces = self._model.get_piece_size()
        self._fragments: dict[int, Fragment] = {}
        controls = [id for id, control in enumerate(self._model.is_control(list(range(self._pieces)))) if control]
        specials = {id: AddedToken(id, self._model.id_to_piece(id), special=True) for id in controls}
        self._added = specials | {token.id: token for token in settings.added_tokens}
        self._ids = {token.text: id for id, token in self._added.items()}
        self._special_ids = frozenset(id for id, token in self._added.items() if token.special)
        self._patterns = {special: _pattern(self._added.values(), special=special) for special in (True, False)}
        self._mark_ids = self._model.encode(MARK)
        self._leading_spaces = _leading_spaces(self._model)
        self.vocab_size = max([self._pieces, *(id + 1 for id in self._added)])
        self._name_tokens(settings)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        text = prepare(text, is_afm=self._is_afm)
        pattern = self._patterns[special]
        ids: list[int] = []
        position = 0
        for match in pattern.finditer(text) if pattern else ():
            ids += self._encode_segment(text[position : match.start()], begins=position == 0)
            ids.append(self._ids[match[0] if match[0] in self._ids else match[0].strip()])
            position = match.end()
        return ids + self._encode_segment(text[position:], begins=position == 0)

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        id = self._model.piece_to_id(token)
        return id if self._model.id_to_piece(id) == token else None

    def text_stream(self, *, skip_special: bool = True) -> TextStream:
        # "" rather than None: a special token ends an incomplete character, as it does in the library.
        skipped = self._special_ids if skip_special else frozenset()
        return FragmentStream(
            lambda id: "" if id in skipped else self._fragment(id),
            leading_spaces=self._leading_spaces,
            errors=REPLACE_EACH_BYTE,
        )

    def _encode_segment(self, text: str, *, begins: bool) -> list[int]:
        if not text:
            return []
        if begins or self._prefix_every_segment:
            return self._model.encode(text)
        return self._model.encode(MARK + text)[len(self._mark_ids) :]

    def _fragment(self, id: int) -> Fragment:
        if id not in self._fragments:
            self._fragments[id] = self._make_fragment(id)
        return self._fragments[id]

    def _make_fragment(self, id: int) -> Fragment:
        if id in self._added:
            return self._added[id].text.encode()  # bytes, because a leading space here is the token's own
        if not 0 <= id < self._pieces:
            return None
        piece = self._model.id_to_piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[3:5], 16)])
        if self._model.is_unknown(id):
            return self._model.decode([id]).encode()
        if self._is_afm and piece == NEWLINE_TOKEN:
            return "\n"
        return piece.replace(SPACE, " ")

    def _name_tokens(self, settings: TokenizerSettings) -> None:
        names = dict(settings.token_names)
        for name, id in (("bos_token", self._model.bos_id()), ("eos_token", self._model.eos_id())):
            if id >= 0:
                names.setdefault(name, self._model.id_to_piece(id))
        self.token_names = names
        self.bos_id = self.token_id(names.get("bos_token", ""))
        adds_bos = settings.add_bos if settings.add_bos is not None else not settings.is_afm
        self.prompt_prefix = (self.bos_id,) if adds_bos and self.bos_id is not None else ()
        ends = [names.get("eos_token", ""), *(["<turn_end>"] if settings.is_afm else [])]
        self.eos_ids = settings.eos_ids | {id for id in map(self.token_id, ends) if id is not None}


def _read(path: Path) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}); check the file's permissions.") from error
    except RuntimeError as error:  # its text names only a line of the library's source
        raise TokenizerError(
            f"{path} is not a SentencePiece model; fetch the file again, or give a tokenizer.json instead."
        ) from error
    return model


def _leading_spaces(model: sentencepiece.SentencePieceProcessor) -> float:
    """How many spaces the library's decoder drops where a text begins; the normaliser's own behaviour tells."""
    if model.normalize("a  b").count(SPACE) - model.normalize("a").count(SPACE) < 2:
        return math.inf  # extra white space is removed
    return 1 if model.normalize("a").startswith(SPACE) else 0


def _pattern(tokens: Iterable[AddedToken], *, special: bool) -> re.Pattern[str] | None:
    """Matches the added tokens in a text, longest first, special ones among them only where asked for."""
    spellings = [
        (r"\s*" if token.lstrip else "") + re.escape(token.text) + (r"\s*" if token.rstrip else "")
        for token in sorted(tokens, key=lambda token: len(token.text), reverse=True)
        if special or not token.special
    ]
    return re.compile("|".join(spellings)) if spellings else None
