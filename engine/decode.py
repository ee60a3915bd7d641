"""The token loop. It knows nothing of text: logits go in, token ids come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import mlx.core as mx

from russet.engine.errors import WeightsError
from russet.engine.sampling import Sampler

Step = Callable[[mx.array], mx.array]
"""Token ids [1, 1] -> logits [1, vocab] of the next token; appends to the cache."""


def decode(step: Step, logits: mx.array, sample: Sampler, limit: int) -> Iterator[int]:
    """Up to `limit` tokens, the first drawn from `logits` [1, vocab].

    The first token is handed out before anything else is started, so that nothing delays it. From then on the device
    computes one token ahead while the caller handles the previous one.

    Raises WeightsError where `logits` hold what is not a number, or infinity: damaged weights would speak nonsense.
    """
    token, sound = sample(logits), (logits < math.inf).all()
    mx.eval(token, sound)
    if not sound.item():
        raise WeightsError(
            "The model answers with numbers that are not finite: compute in float32 (--dtype), or fetch or convert it "
            "anew, for its weights are damaged or too large for this data type."
        )
    yield _value(token)
    upcoming: mx.array | None = None
    for produced in range(1, limit):
        token = upcoming if upcoming is not None else _launch(step, token, sample)
        upcoming = _launch(step, token, sample) if produced + 1 < limit else None
        yield _value(token)


def _launch(step: Step, token: mx.array, sample: Sampler) -> mx.array:
    following = sample(step(token[:, None]))
    mx.async_eval(following)
    return following


def _value(token: mx.array) -> int:
    """Wait for a drawn token."""
    return int(token.tolist()[0])  # type: ignore[index]
