"""Qwen 3 (dense): Llama with an RMS norm on each query and key head, before rotation."""

from __future__ import annotations

from dataclasses import replace

from russet.models.config import DecoderConfig
from russet.models.families import llama
from russet.models.families.base import Config, refuse_unless


def read(config: Config) -> DecoderConfig:
    refuse_unless(config, "use_sliding_window", (False, None))
    defaults = {"max_position_embeddings": 32768, "head_dim": 128}
    return replace(llama.read({**defaults, **config}), qk_norm="before_rope")


def names(config: DecoderConfig) -> dict[str, str]:
    roles = llama.names(config)
    for i in range(len(config.layers)):
        for part in "qk":
            roles[f"layers.{i}.{part}_norm"] = f"model.layers.{i}.self_attn.{part}_norm"
    return roles
