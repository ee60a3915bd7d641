"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over arrays by name, as a function that is part of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from russet.converters.recipes.base import Treatment
from russet.converters.recipes.source import Params

EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Schedule:
    """A linear warm-up and a straight line down to zero, which ends lower than a cosine (arXiv 2502.15938)."""

    rate: float
    steps: int
    warmup: int

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * max(0.0, 1 - done)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Decay rates of the two moments, weight decay, and the largest global norm of a gradient."""

    first: float = 0.9
    second: float = 0.95
    decay: float = 0.01
    clip: float = 1.0

    def update(
        self,
        moments: tuple[Params, Params],
        params: Params,
        gradients: Params,
        rate: mx.array,
        step: mx.array,
        treatment: Callable[[str], Treatment],
    ) -> tuple[Params, tuple[Params, Params], mx.array]:
        """Parameters, moments and the gradients' norm after a step; `step` counts from 1."""
        # In one order whatever the order of `params`, which a checkpoint changes: the last bit of a sum depends on it.
        gradients = {name: gradients[name].astype(mx.float32) for name in sorted(gradients)}
        # One long row: a sum an array would be two launches each, which a GPU's host cannot keep up with.
        norm = mx.sqrt(mx.square(mx.concatenate([gradient.reshape(-1) for gradient in gradients.values()])).sum())
        shrink = mx.minimum(1.0, self.clip / (norm + 1e-6))
        unbias_first = 1 / (1 - mx.power(self.first, step))
        unbias_second = 1 / (1 - mx.power(self.second, step))
        new, means, squares = {}, {}, {}
        for name, param in params.items():
            gradient = gradients[name] * shrink
            means[name] = self.first * moments[0][name] + (1 - self.first) * gradient
            squares[name] = self.second * moments[1][name] + (1 - self.second) * mx.square(gradient)
            change = means[name] * unbias_first / (mx.sqrt(squares[name] * unbias_second) + EPSILON)
            how = treatment(name)
            if how.decays and self.decay:
                change = change + self.decay * param
            new[name] = param - how.rate * rate * change
        return new, (means, squares), norm
