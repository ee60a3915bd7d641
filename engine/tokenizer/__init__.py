"""Text <-> token ids, whatever file the tokenizer comes in."""

from russet.engine.tokenizer.base import Tokenizer
from russet.engine.tokenizer.loading import load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
