"""What the JSON files beside a tokenizer say about it, read once into one record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.engine.errors import TokenizerError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
AFM_MODEL_TYPES = frozenset({"afm7", "tamm"})


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the vocabulary's own; `lstrip` and `rstrip` make it swallow the white space next to it."""

    id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """`add_bos` is None where no file decides; `is_afm` means newlines are written `<n>`."""

    token_names: dict[str, str]
    eos_ids: frozenset[int]
    add_bos: bool | None
    added_tokens: tuple[AddedToken, ...]
    prefix_every_segment: bool
    is_afm: bool

    @classmethod
    def read(cls, folder: Path, eos_ids: Iterable[int] = ()) -> TokenizerSettings:
        """Of a model folder; every file is optional. Raises TokenizerError where one is damaged."""
        config = read_json(folder / "tokenizer_config.json")
        names = read_json(folder / "special_tokens_map.json") | {k: v for k, v in config.items() if v is not None}
        generation = _eos_ids(read_json(folder / "generation_config.json").get("eos_token_id"))
        add_bos = config.get("add_bos_token")
        return cls(
            token_names={name: _token_text(names[name], name) for name in NAMED_TOKENS if names.get(name)},
            eos_ids=frozenset([*eos_ids, *generation]),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            added_tokens=tuple(_added_tokens(folder, config)),
            prefix_every_segment=config.get("legacy") is True,
            is_afm=is_afm(folder) or config.get("tokenizer_class") == "NewlineTokenizer",
        )


def is_afm(folder: Path) -> bool:
    """Whether config.json names an Apple Foundation Model."""
    return read_json(folder / "config.json").get("model_type") in AFM_MODEL_TYPES


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is absent. Raises TokenizerError where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not readable JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__} where an object is expected; fetch it again.")
    return value


def _token_text(value: Any, name: str) -> str:
    """A token is written as its text, or as an object with a "content"."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TokenizerError(f"tokenizer_config.json has {name} = {value!r}, where a token's text is expected.")
    return text


def _eos_ids(value: Any) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in ids):
        raise TokenizerError(f"generation_config.json has eos_token_id = {value!r}, where token ids are expected.")
    return ids


def _added_tokens(folder: Path, config: dict[str, Any]) -> list[AddedToken]:
    """From tokenizer_config.json's `added_tokens_decoder`, and from the older added_tokens.json."""
    tokens = {}
    try:
        for text, id in read_json(folder / "added_tokens.json").items():
            tokens[int(id)] = AddedToken(int(id), text, special=False)
        for id, value in config.get("added_tokens_decoder", {}).items():
            flags = {key: bool(value.get(key, False)) for key in ("special", "lstrip", "rstrip")}
            tokens[int(id)] = AddedToken(int(id), _token_text(value, f"added token {id}"), **flags)
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"The list of added tokens in {folder} is damaged ({error}); fetch it again.") from error
    if any(id < 0 or not token.text for id, token in tokens.items()):
        raise TokenizerError(
            f"The list of added tokens in {folder} has an empty token or a negative id; fetch it again."
        )
    return list(tokens.values())
