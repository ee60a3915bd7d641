"""Rebuild a tokenizer from a GGUF file's metadata as `tokenizer.json` and `tokenizer_config.json`.

`gpt2` vocabularies are byte-level BPE; how text is cut before merging is known only by name (`tokenizer.ggml.pre`),
with the expressions of llama.cpp's src/llama-vocab.cpp or of the model's own tokenizer.json. `llama` vocabularies are
SentencePiece BPE: pieces and scores, from which the merges follow (a pair merges where its join is a piece, best score
first).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from russet.converters.gguf_file import GGUFFile
from russet.engine.errors import CheckpointError, RussetError, TokenizerError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tokenizer.ggml.pre -> expressions that cut the text one after the other
PRE_TOKENIZERS = {
    "gpt-2": (_GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "phi-2": "gpt-2"}

# Control tokens that end a turn, as llama.cpp recognises them where the metadata names only one.
END_OF_TURN = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>"})


def tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, the latter with the file's chat template.

    Raises TokenizerError when the file has no tokenizer, UnsupportedModelError for a kind or a pre-tokenizer that is
    not known.
    """
    model = file.get("tokenizer.ggml.model")
    if model is None or file.get("tokenizer.ggml.tokens") is None:
        raise TokenizerError(f"{file.path.name} holds no tokenizer; use a GGUF file that includes one.")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise UnsupportedModelError(
            f"{file.path.name} has a tokenizer of kind {model!r}; Russet rebuilds {' and '.join(builders)}."
        )
    vocabulary = _Vocabulary(file)
    try:
        tokenizer = builders[model](vocabulary)
    except RussetError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise TokenizerError(f"The tokenizer in {file.path.name} is damaged ({error}).") from error
    vocabulary.add_special(tokenizer)
    settings = json.dumps(vocabulary.settings(), indent=2, ensure_ascii=False)
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": settings.encode()}


def end_ids(file: GGUFFile) -> list[int]:
    """The tokens that end a reply: those that the metadata names, then those known by their text."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [file.get(f"tokenizer.ggml.{key}") for key in keys]
    vocabulary = _Vocabulary(file)
    known = [i for i, token in enumerate(vocabulary.tokens) if token in END_OF_TURN and vocabulary.is_control(i)]
    return list(dict.fromkeys(i for i in [*ids, *known] if i is not None))


class _Vocabulary:
    """The tokens of a file with their kinds, and what is common to both kinds of tokenizer."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.tokens: list[str] = file.require("tokenizer.ggml.tokens", list)
        self.kinds: list[int] = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.tokens)
        if len(self.kinds) != len(self.tokens):
            raise CheckpointError(
                f"{file.path.name} has {len(self.tokens)} tokens but {len(self.kinds)} token types; it is damaged."
            )

    def is_control(self, token: int) -> bool:
        return self.kinds[token] in (CONTROL, UNKNOWN)

    def named(self, role: str, default: int | None = None) -> str | None:
        """The text of the token that the metadata names for a role ("bos", "eos", "unknown", "padding")."""
        token = self.file.get(f"tokenizer.ggml.{role}_token_id", default)
        return self.tokens[token] if token is not None and 0 <= token < len(self.tokens) else None

    def add_special(self, tokenizer: Tokenizer) -> None:
        """Mark the tokens that are never the product of merges, and have the tokenizer put BOS first if it should."""
        from tokenizers import AddedToken, processors

        for token, kind in zip(self.tokens, self.kinds, strict=True):
            if kind in (CONTROL, UNKNOWN):
                tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            elif kind == USER_DEFINED:
                tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
        bos = self.named("bos", 1 if self.file.get("tokenizer.ggml.model") == "llama" else None)
        if bos is not None and self.adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos}:0 $A:0",
                pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            )

    @property
    def adds_bos(self) -> bool:
        """As the metadata says, else as llama.cpp assumes."""
        assumed = self.file.get("tokenizer.ggml.model") == "llama" or self.pre_tokenizer == "llama-bpe"
        return bool(self.file.get("tokenizer.ggml.add_bos_token", assumed))

    @property
    def pre_tokenizer(self) -> str:
        name: str = self.file.get("tokenizer.ggml.pre") or "default"
        return ALIASES.get(name, name)

    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        is_spm = self.file.get("tokenizer.ggml.model") == "llama"
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.file.number("context_length", int),
            "add_bos_token": self.adds_bos,
            "bos_token": self.named("bos", 1 if is_spm else None),
            "eos_token": self.named("eos", 2 if is_spm else None),
            "unk_token": self.named("unknown", 0 if is_spm else None),
            "pad_token": self.named("padding"),
            "chat_template": self.file.get("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
        }
        return {key: value for key, value in settings.items() if value is not None}


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = vocabulary.pre_tokenizer
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{vocabulary.file.path.name} cuts text by the rule {name!r}, which Russet does not know; known are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}."
        )
    merges = vocabulary.file.require("tokenizer.ggml.merges", list)
    pairs = []
    for merge in merges:
        left, _, right = merge[1:].partition(" ")  # a merge may begin with a space
        pairs.append((merge[:1] + left, right))
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary.tokens)},
            merges=pairs,
            ignore_merges=name == "llama-bpe",
        )
    )
    cuts = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in PRE_TOKENIZERS[name]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = vocabulary.file.require("tokenizer.ggml.scores", list)
    prefix = bool(vocabulary.file.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary.tokens)},
            merges=_merges(vocabulary, scores),
            unk_token=vocabulary.named("unknown", 0),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece out of two others, best piece first."""
    pieces = {token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == NORMAL}
    ranked = []
    for i, (token, score) in enumerate(zip(vocabulary.tokens, scores, strict=True)):
        if token in pieces:
            splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            ranked += [(-score, i, left, right) for left, right in splits if left in pieces and right in pieces]
    ranked.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in ranked]
