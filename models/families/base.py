"""The contract of a family file: a checkpoint's `config.json` and tensor names -> ours.

A family is one module with two functions, registered under its `model_type` in `models/families/__init__.py`:

    read(config)     config.json as a dict -> DecoderConfig; refuses by name what the decoder does not implement
    names(config)    DecoderConfig -> {role: stock name}, the tensors that the stock checkpoint has

A role is `embed`, `norm`, `head`, or `layers.<i>.<part>` with the parts

    attn_norm  q  k  v  qkv  o  q_norm  k_norm  k_scale  v_scale  post_attn_norm
    ffn_norm  gate  up  gate_up  down  post_ffn_norm

A linear map's role stands for its prefix: `<name>.weight`, and `.bias`, `.scales`, `.biases` where present. `qkv` and
`gate_up` are for checkpoints that store them fused, rows in that order.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from russet.engine.errors import UnsupportedModelError
from russet.models.config import Activation, Attention, DecoderConfig

Config = dict[str, Any]


class Family(Protocol):
    """What every module in this folder offers."""

    def read(self, config: Config) -> DecoderConfig: ...
    def names(self, config: DecoderConfig) -> dict[str, str]: ...


def require(config: Config, key: str, kind: type = int) -> Any:
    """`config[key]`, or an error that names the key that is missing or has the wrong type."""
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"no {key!r}" if value is None else f"{key} = {value!r}"
        expected = "a list" if kind is list else "a whole number"
        raise UnsupportedModelError(
            f"config.json of this {config.get('model_type')} model has {found}; it must be {expected}."
        )
    return value


def positive(config: Config, key: str) -> int:
    """`config[key]` as a whole number above zero."""
    value = require(config, key)
    if value <= 0:
        raise UnsupportedModelError(f"config.json has {key} = {value}; it must be above zero.")
    return value


MAX_LAYERS = 1024
"""Far above any model, and low enough that a hostile count costs no memory."""


def layer_count(config: Config, key: str) -> int:
    """`config[key]` as a number of layers that can exist."""
    count = positive(config, key)
    if count > MAX_LAYERS:
        raise UnsupportedModelError(f"config.json has {key} = {count}; at most {MAX_LAYERS} layers are supported.")
    return count


def activation(config: Config, key: str, default: str = "silu") -> Activation:
    """The FFN's activation in our name for it."""
    name = config.get(key) or default
    known: dict[str, Activation] = {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "relu": "relu",
    }
    if name not in known:
        raise UnsupportedModelError(f"config.json has {key} = {name!r}; Russet implements {', '.join(sorted(known))}.")
    return known[name]


def attention(config: Config, length: int) -> tuple[Attention, float | None]:
    """The kind of attention and sigmoid's bias: Russet's own keys, for stock configurations have none for them.

    `sigmoid_bias` is a number, or "visible" for -log of the keys that a query sees; left out it is -log of the trained
    `length`, the rule of arXiv 2409.04431.
    """
    refuse_unless(config, "attention_kind", ("softmax", "sigmoid", None))
    if config.get("attention_kind") != "sigmoid":
        return "softmax", None
    bias = config.get("sigmoid_bias")
    if bias is None:
        return "sigmoid", -math.log(length)
    if bias == "visible":
        return "sigmoid", None
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
        raise UnsupportedModelError(f"config.json has sigmoid_bias = {bias!r}; a number or 'visible' is expected.")
    return "sigmoid", float(bias)


def refuse_unless(config: Config, key: str, allowed: tuple[Any, ...]) -> None:
    """Refuse a configuration whose `key` is present with a value the decoder does not implement."""
    if key in config and config[key] not in allowed:
        expected = " or ".join(repr(value) for value in allowed)
        raise UnsupportedModelError(
            f"config.json has {key} = {config[key]!r}; this family is implemented for {expected} only."
        )


def eos_ids(config: Config) -> tuple[int, ...]:
    """`eos_token_id` as a tuple, whether it is absent, a number or a list."""
    value = config.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
