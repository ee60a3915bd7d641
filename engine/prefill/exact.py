"""Exact prefill: every token through every layer that a later token reads, in chunks that bound activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx

from russet.engine.device import prefill_chunk
from russet.engine.prefill.base import Extendable, Prefilled, PromptTokens, Work


class Exact:
    """Chunk by chunk; logits are computed for the prompt's last token and for nothing else.

    Of the other chunks only keys and values are evaluated: the last writing layer's attention and FFN, and all layers
    that share its rows, are not computed for them.
    """

    name = "exact"
    exact = True

    def __init__(self, chunk: int | None = None) -> None:
        self.chunk = chunk

    def __call__(self, decoder: Extendable, prompt: PromptTokens, cache: Any) -> Prefilled:
        count = len(prompt.tokens)
        tokens = mx.array(list(prompt.tokens))[None]
        chunk = self.chunk or prefill_chunk(getattr(decoder, "packed", False))
        last_start = (count - 1) // chunk * chunk
        for start in range(0, last_start, chunk):
            decoder.extend(tokens[:, start : start + chunk], cache, logits=0)
            mx.eval(cache.arrays())
        logits = decoder.extend(tokens[:, last_start:], cache, logits=1)
        assert logits is not None
        return Prefilled(logits[:, -1], exact=True, strategy=self.name, work=Work(_layer_tokens(decoder, count)))


def exact_instead(
    decoder: Extendable, prompt: PromptTokens, cache: Any, note: str, chunk: int | None = None
) -> Prefilled:
    """Exact prefill in place of a strategy that does not apply; `note` is the sentence that says why."""
    return replace(Exact(chunk)(decoder, prompt, cache), note=note)


def _layer_tokens(decoder: Extendable, tokens: int) -> list[int]:
    """All tokens up to the last layer that writes keys and values, where the last token goes on alone."""
    config = getattr(decoder, "config", None)
    if config is None:
        return []
    whole = config.last_writer
    return [tokens if i < whole else 1 for i in range(len(config.layers))]
