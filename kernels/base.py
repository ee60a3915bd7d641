"""What a kernel is, and when its reference serves in its place.

Before a variant of a kernel (one set of template arguments and data types) first serves on a device, it is compared
there with its reference on small random inputs. One that does not compile, or is further off than its tolerance,
is switched off for the process with one warning, and the reference serves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal
from weakref import WeakSet

import mlx.core as mx
import numpy as np

from russet.engine.errors import InvalidOptionError
from russet.kernels.backend import Backend, backend, build

Mode = Literal["on", "reference", "off"]
Inputs = Sequence[mx.array]

_log = logging.getLogger("russet")
_made: dict[str, WeakSet[Kernel]] = {}
_switched_off: list[str] = []


@cache
def mode() -> Mode:
    """Return $RUSSET_KERNELS.

    on         kernels serve where the device has them and they pass their check (the default)
    reference  operations that have a kernel run as its reference, in MLX operations
    off        no operation of this room is used where MLX has one of its own

    Raises InvalidOptionError for another value.
    """
    chosen = os.environ.get("RUSSET_KERNELS", "on")
    if chosen in ("on", "reference", "off"):
        return chosen
    raise InvalidOptionError(f"RUSSET_KERNELS is {chosen!r}: set it to on, reference or off.")


@dataclass(frozen=True, slots=True)
class Launch:
    """How one call runs: threads (grid, threadgroup), template arguments, and what comes out."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    template: tuple[tuple[str, Any], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[mx.Dtype, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of one variant with its reference: relative error in the 2-norm, or why there is none."""

    variant: str
    error: float | None
    reason: str = ""


@dataclass(eq=False)
class Kernel:
    """One body in kernels/src with its contract; calling it computes the operation, by the body or by the reference.

    `launch(target, *inputs)` and `reference(*inputs)` depend on the inputs alone. `sample(*inputs)` makes small random
    inputs that launch the same variant, and `examples(target)` gives small random inputs for every variant there is.
    The body of a `strided` kernel goes by its inputs' strides; others get contiguous inputs.
    """

    name: str
    body: str
    headers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reference: Callable[..., list[mx.array]]
    launch: Callable[..., Launch]
    sample: Callable[..., Inputs]
    examples: Callable[[Backend], Iterator[Inputs]]
    tolerance: dict[mx.Dtype, float]
    strided: bool = False
    _plans: dict[Any, Launch | None] = field(default_factory=dict, init=False, repr=False)
    _checks: dict[str, Check] = field(default_factory=dict, init=False, repr=False)
    _disabled: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        _made.setdefault(self.name, WeakSet()).add(self)

    @property
    def disabled(self) -> str:
        """Why it was switched off on this device, "" if it was not."""
        return self._disabled

    @property
    def checks(self) -> tuple[Check, ...]:
        """What the checks of this process found, in their order."""
        return tuple(self._checks.values())

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        key = tuple((array.shape, array.dtype) for array in inputs)
        if key not in self._plans:
            self._plans[key] = self._plan(inputs)
        launch = self._plans[key]
        if launch is None or self._disabled:
            return self.reference(*inputs)
        return self.run(inputs, launch)

    def run(self, inputs: Inputs, launch: Launch, **options: Any) -> list[mx.array]:
        """Run the body; `options` go to MLX's call."""
        return self._compiled(
            inputs=list(inputs),
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            template=list(launch.template),
            output_shapes=list(launch.output_shapes),
            output_dtypes=list(launch.output_dtypes),
            **options,
        )

    def check(self, inputs: Inputs, target: Backend) -> Check:
        """Compare the variant that `inputs` launch with the reference, once; switch the kernel off if it fails."""
        variant = variant_name(self.launch(target, *inputs), inputs)
        if variant not in self._checks:
            self._checks[variant] = self._compare(variant, self.sample(*inputs), target)
            if reason := self._checks[variant].reason:
                self._disable(f"{reason} ({variant})")
        return self._checks[variant]

    @cached_property
    def _compiled(self) -> Callable[..., list[mx.array]]:
        target = backend() or "metal"
        return build(self.name, self.body, self.headers, self.inputs, self.outputs, target, self.strided)

    def _plan(self, inputs: Inputs) -> Launch | None:
        target = backend()
        if mode() != "on" or target is None or self._disabled or self.check(inputs, target).reason:
            return None
        return self.launch(target, *inputs)

    def _compare(self, variant: str, inputs: Inputs, target: Backend) -> Check:
        try:
            found = self.run(inputs, self.launch(target, *inputs))
            mx.eval(found)
        except Exception as error:  # whatever the compiler or the driver says, the reference can still serve
            return Check(variant, None, f"it does not run: {_reason(error)}")
        # The CPU has no reduced precision; GPU products of float32 may.
        with mx.stream(mx.cpu):
            expected = self.reference(*inputs)
            error = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
        allowed = self.tolerance[inputs[0].dtype]
        if error <= allowed:
            return Check(variant, error)
        return Check(variant, error, f"its error against the reference is {error:.1e}, and {allowed:.0e} is allowed")

    def _disable(self, reason: str) -> None:
        if not self._disabled:
            _switched_off.append(self.name)
            _log.warning("Kernel %s is switched off, and MLX's operations serve: %s.", self.name, reason)
        self._disabled = self._disabled or reason


def _reason(error: Exception) -> str:
    """One line of what a compiler or a driver says: its first error, for warnings may come before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error:" in line), lines[0])


def switched_off() -> int:
    """How many kernels were switched off in this process so far: what asked before asks again when it has grown."""
    return len(_switched_off)


def made(name: str) -> list[Kernel]:
    """The kernels that this process made under one name: those made to measure have one for each form."""
    return list(_made.get(name, ()))


def relative_error(found: mx.array, expected: mx.array) -> float:
    """The 2-norm of the difference over that of `expected`, in float32; NaN where anything is."""
    wide = expected.astype(mx.float32)
    ratio = mx.linalg.norm(found.astype(mx.float32) - wide) / mx.linalg.norm(wide)
    return float(np.array(ratio))


def variant_name(launch: Launch, inputs: Inputs) -> str:
    """The template arguments and data types that tell one compiled form of a kernel from another."""
    values = [f"{name}={_word(value)}" for name, value in launch.template]
    return " ".join([*values, *(_word(array.dtype) for array in inputs)])


def _word(value: Any) -> str:
    return str(value).rpartition(".")[2]
