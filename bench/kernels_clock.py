"""Time a call on a GPU, contenders taking turns.

Calls that do not depend on each other are made first and evaluated together, so the result is time a call at full load
and not the latency of a lone call. Each call has weights of its own, and all of them are more than caches hold. What
MLX spends on the host to launch a kernel bounds the result from below: a profiler tells the GPU's own time
(`ncu --clock-control none --metrics gpu__time_duration.sum`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from russet.bench.stats import Summary
from russet.engine.timing import now
from russet.kernels.base import Kernel

# Larger than the last-level cache of any device in reach, so that weights come from memory.
_FRESH_BYTES = 256 << 20
_COPY_BYTES = 1 << 30
_MOST_COPIES = 1024
# Several CUDA graphs: the host builds the next one while the GPU runs one.
_LEAST_CALLS = 128
_ROUNDS = 7

Call = Callable[[], mx.array]


@dataclass(frozen=True, slots=True)
class Side:
    """One contender: independent calls, and the bytes that each reads and writes at least.

    `operations` are floating-point operations, given where they and not the bytes bound a call. `kernels` are those of
    ours that it runs.
    """

    calls: Sequence[Call]
    bytes: int
    operations: int = 0
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """A thing to time; `build` makes its inputs and gives its sides, ours first."""

    name: str
    build: Callable[[], dict[str, Side]]


@dataclass(frozen=True, slots=True)
class Reached:
    """What one side took, in seconds a call; `note` says what ran where a kernel was switched off."""

    seconds: Summary
    bytes: int
    operations: int
    note: str = ""

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds.median

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.seconds.median


@dataclass(frozen=True, slots=True)
class Timing:
    """A case's sides, ours first."""

    name: str
    sides: dict[str, Reached]


def fresh(arrays: Sequence[mx.array]) -> list[list[mx.array]]:
    """Copies of a call's weights, together more than caches hold; two at least."""
    size = sum(array.nbytes for array in arrays)
    count = max(2, min(_MOST_COPIES, _FRESH_BYTES // size))
    copies = [[array + mx.zeros((), array.dtype) for array in arrays] for _ in range(count)]
    mx.eval(copies)
    return copies


def calls(call: Callable[..., mx.array], sets: Sequence[Sequence[mx.array]], least: int | None = None) -> list[Call]:
    """A call for each set of weights, and again from the first until there are `least`."""
    count = max(len(sets), least or _LEAST_CALLS)
    return [partial(call, *sets[i % len(sets)]) for i in range(count)]


def time_case(case: Case) -> Timing:
    """Run every side once uncounted, which compiles, then in alternating rounds."""
    sides = case.build()
    for side in sides.values():
        _seconds(side.calls)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(_ROUNDS):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            found[name].append(_seconds(sides[name].calls) / len(sides[name].calls))
    return Timing(
        case.name,
        {
            name: Reached(Summary(tuple(found[name])), side.bytes, side.operations, _note(side))
            for name, side in sides.items()
        },
    )


def copy_bytes_per_s() -> float:
    """Bytes a second, read and written, of an elementwise pass over 1 GiB."""
    source = mx.random.normal((_COPY_BYTES // 4,))
    mx.eval(source)
    best = min(_seconds([lambda: source * 2.0]) for _ in range(_ROUNDS))
    return 2 * source.nbytes / best


def _note(side: Side) -> str:
    disabled = [f"{kernel.name}: {kernel.disabled}" for kernel in side.kernels if kernel.disabled]
    return f"MLX's operations ran in place of {'; '.join(disabled)}" if disabled else ""


def _seconds(calls: Sequence[Call]) -> float:
    results = [call() for call in calls]
    mx.synchronize()
    start = now()
    mx.eval(results)
    mx.synchronize()
    return now() - start
