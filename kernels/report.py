"""What `russet doctor` says of each kernel: simulated, checked on this device, timed beside MLX, or why it is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from russet.engine.timing import now
from russet.kernels.backend import Backend, backend
from russet.kernels.base import Check, Kernel, made, mode, variant_name
from russet.kernels.registry import SIMULATED, kernels
from russet.kernels.trials import Size, Trial, trials

_CALLS = 16
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """All kernels of one name that this process made, as one.

    simulated   its Metal text runs in the tests
    reason      why it does not serve; if it does, why some of its forms do not
    checks      the variants that were compared with the reference here, of `variants`
    russet_s    seconds a call at a well-known size (trials.py), and of MLX's operations for it; None if not timed
    """

    name: str
    simulated: bool
    serves: bool
    reason: str
    checks: tuple[Check, ...] = ()
    variants: int = 0
    russet_s: float | None = None
    mlx_s: float | None = None

    @property
    def error(self) -> float | None:
        """The largest relative error that a check found."""
        return max((check.error for check in self.checks if check.error is not None), default=None)


def reports() -> list[Report]:
    """Check one variant of every kernel on this device and time it beside MLX; what has served was checked before.

    All variants would take minutes to compile on CUDA.
    """
    target, found = backend(), kernels()
    if mode() != "on" or target is None:
        reason = f"RUSSET_KERNELS={mode()}" if mode() != "on" else "MLX computes on a CPU here"
        return [Report(kernel.name, kernel.body in SIMULATED, False, reason) for kernel in found]
    calls = trials(Size())
    return [_report(kernel, calls[kernel.name](), target) for kernel in found]


def _report(kernel: Kernel, trial: Trial, target: Backend) -> Report:
    trial.kernel.check(trial.inputs, target)
    alike = made(kernel.name)
    checked = [one for one in alike if one.checks]
    reasons = sorted({one.disabled for one in checked if one.disabled})
    variants = {name for one in alike for name in _variants(one, target)}
    # Of forms whose variants have the same name, a failure is what is kept.
    found = sorted((check for one in checked for check in one.checks), key=lambda check: bool(check.reason))
    checks = {check.variant: check for check in found}
    timed = not trial.kernel.disabled
    return Report(
        kernel.name,
        kernel.body in SIMULATED,
        any(not one.disabled for one in checked),
        "; ".join(reasons),
        tuple(checks.values()),
        len(variants | checks.keys()),
        seconds(lambda: trial.kernel(*trial.inputs)[0]) if timed else None,
        seconds(trial.stock) if timed else None,
    )


def _variants(kernel: Kernel, target: Backend) -> set[str]:
    return {variant_name(kernel.launch(target, *inputs), inputs) for inputs in kernel.examples(target)}


def seconds(call: Callable[[], mx.array]) -> float:
    """Time a call where several that do not depend on each other wait in line: the best round, after one to compile."""
    times = []
    for _ in range(1 + _ROUNDS):
        results = [call() for _ in range(_CALLS)]
        mx.synchronize()
        start = now()
        mx.eval(results)
        mx.synchronize()
        times.append((now() - start) / _CALLS)
    return min(times[1:])
