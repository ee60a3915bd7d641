"""A model folder -> its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from russet.engine.errors import TokenizerError
from russet.engine.tokenizer.base import Tokenizer
from russet.engine.tokenizer.settings import TokenizerSettings

logger = logging.getLogger("russet")


def load_tokenizer(folder: Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
    """From tokenizer.json (`tokenizers`), else tokenizer.model (SentencePiece).

    The tokens that end a reply are `eos_ids` (config.json's), generation_config.json's, and the `eos_token` of
    tokenizer_config.json. Raises TokenizerError where neither file is there, or one is damaged.
    """
    folder = Path(folder)
    settings = TokenizerSettings.read(folder, eos_ids)
    if (path := folder / "tokenizer.json").is_file():
        from russet.engine.tokenizer.tokenizers_json import TokenizersJson

        tokenizer = TokenizersJson(path, settings)
    elif (path := folder / "tokenizer.model").is_file():
        from russet.engine.tokenizer.sentencepiece_model import SentencePieceModel

        tokenizer = SentencePieceModel(path, settings)
    else:
        raise TokenizerError(
            f"{folder} has no tokenizer: looked for tokenizer.json and tokenizer.model; "
            "copy one of them from the original checkpoint."
        )
    if not tokenizer.eos_ids:
        logger.warning("%s names no token that ends a reply; replies will run to their length limit.", folder)
    return tokenizer
