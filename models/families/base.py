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

from typing import Any, Protocol

from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig

Config = dict[str, Any]


class Family(Protocol):
    """What every module in this folder offers."""

    def read(self, config: Config) -> DecoderConfig: ...
    def names(self, config: DecoderConfig) -> dict[str, str]: ...


def require(config: Config, key: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
    """`config[key]`, or an error that names the key that is missing or has the wrong type."""
    value = config.get(key)
    if value is None:
        raise UnsupportedModelError(
            f"config.json of this {config.get('model_type')!r} model has no {key!r}, which its family needs."
        )
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UnsupportedModelError(f"config.json has {key} = {value!r}, which is not of the expected type.")
    return value


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
