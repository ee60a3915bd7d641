"""How to generate: one frozen, validated set of options for Python, the command line and saved sessions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real

from russet.engine.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Sampling and stopping.

    `temperature` 0 is greedy: the most likely token each time. `max_tokens` None goes on to the end of the context.
    `top_k` 0, `top_p` 1 and `min_p` 0 are off. `repetition_penalty` divides the logits of tokens among the last
    `repetition_window`. `logit_bias` adds to the logits of token ids. Raises `InvalidOptionError` for a value outside
    its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check_kinds()
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or above")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or above")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (off) to 1")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0")
        _check("repetition_window", self.repetition_window, self.repetition_window >= 1, "at least 1")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "from 0 to 2**64 - 1")
        _check("stop", self.stop, all(self.stop), "made of strings that are not empty")
        finite = all(math.isfinite(value) for value in self.logit_bias.values())
        _check("logit_bias", dict(self.logit_bias), finite, "made of finite numbers")

    def _check_kinds(self) -> None:
        for name in ("top_k", "repetition_window", "max_tokens", "seed"):
            value = getattr(self, name)
            optional = name in ("max_tokens", "seed")
            _check(name, value, isinstance(value, Integral) or (optional and value is None), "a whole number")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), Real), "a number")
        texts = isinstance(self.stop, tuple | list) and all(isinstance(text, str) for text in self.stop)
        _check("stop", self.stop, texts, "a string or several")
        biases = isinstance(self.logit_bias, Mapping) and all(
            isinstance(token, Integral) and isinstance(value, Real) for token, value in self.logit_bias.items()
        )
        _check("logit_bias", self.logit_bias, biases, "numbers by token ids")


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise InvalidOptionError(f"{name} is {value!r}; it must be {expected}.")
