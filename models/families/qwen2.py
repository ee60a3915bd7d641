"""Qwen 2 and 2.5: Llama with biases on the query, key and value maps."""

from __future__ import annotations

from dataclasses import replace

from russet.models.config import DecoderConfig
from russet.models.families import llama
from russet.models.families.base import Config, refuse_unless

names = llama.names


def read(config: Config) -> DecoderConfig:
    refuse_unless(config, "use_sliding_window", (False, None))
    defaults = {"max_position_embeddings": 32768}
    return replace(llama.read({**defaults, **config}), qkv_bias=True, out_bias=False)
