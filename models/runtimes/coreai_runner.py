"""Apple's Core AI runtime from synchronous Python: one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from russet.engine.errors import CheckpointError, InvalidOptionError

SETTLE_S = 0.2
"""How long the runtime's threads take, at most, to let go of a call's arrays."""


class CoreAIRunner:
    """One model, compiled for this machine, with its functions loaded.

    Where the system has no Core AI of its own, the compiled form lies in the temporary folder until it is mapped.
    """

    def __init__(self, model: Path, compute_units: str | None) -> None:
        options = _specialization(compute_units)
        try:
            self._functions: dict[str, Any] = _wait(_load(model, options))
        except (RuntimeError, OSError) as error:
            raise CheckpointError(
                f"Core AI could not load {model} ({error}); convert the model again, or set TMPDIR elsewhere if "
                "the disk of the temporary one is full."
            ) from None
        self.functions = list(self._functions)
        _open_runners().add(self)

    def run(self, function: str, inputs: dict[str, np.ndarray], state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Call a function; the arrays of `state`, made by `array`, are updated."""
        given = {name: array(value) for name, value in inputs.items()}
        outputs = _wait(_call(self._functions[function], given, state))
        return {name: value.numpy() for name, value in outputs.items()}

    def state_type(self, function: str, name: str) -> tuple[list[int | None], str]:
        """Shape (None: any) and number format of a state."""
        description = self._functions[function].desc.state_descriptor(name)
        return [None if size is None or size < 0 else size for size in description.shape], str(description.dtype)

    def close(self) -> None:
        """Let go of the model; it cannot be used any more."""
        self._functions.clear()


async def _load(model: Path, options: Any) -> dict[str, Any]:
    from coreai.authoring import AIModelAsset

    async with AIModelAsset.load(model).executable(options) as loaded:
        with _quiet():
            return {name: loaded.load_function(name) for name in loaded.function_names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what the runtime writes to file 2 while a function is loaded: a line that is no error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def array(value: np.ndarray) -> Any:
    """A copy of an array in the runtime's hands."""
    from coreai.runtime import NDArray

    return NDArray(np.ascontiguousarray(value))


def of_the_system() -> bool:
    """Whether the system's own Core AI serves, on every compute unit; otherwise coreai-core's does, on the CPU."""
    from coreai.runtime import SpecializationOptions

    return SpecializationOptions.is_supported()


def _specialization(compute_units: str | None) -> Any:
    """What the runtime may use; only the system's own can choose."""
    if compute_units is None or (compute_units == "cpu" and not of_the_system()):
        return None
    if not of_the_system():
        raise InvalidOptionError(
            f"compute_units is {compute_units!r}, but the Core AI runtime of this process computes on the CPU; leave "
            "it out, or on a Mac set USE_OS_COREAI=1."
        )
    from coreai.runtime import ComputeUnitKind, SpecializationOptions

    if compute_units == "all":
        return SpecializationOptions.default()
    if compute_units == "cpu":
        return SpecializationOptions.cpu_only()
    kind = ComputeUnitKind.gpu() if compute_units == "cpu-gpu" else ComputeUnitKind.neural_engine()
    return SpecializationOptions.from_preferred_compute_unit_kind(kind)


async def _call(function: Any, inputs: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return await function(inputs, state=state)


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="coreai", daemon=True).start()
    return loop


@cache
def _open_runners() -> weakref.WeakSet[CoreAIRunner]:
    runners: weakref.WeakSet[CoreAIRunner] = weakref.WeakSet()

    def close_all() -> None:
        # The runtime's threads give arrays back to Python a moment after a call; where Python is gone, they abort.
        for runner in list(runners):
            runner.close()
        gc.collect()
        time.sleep(SETTLE_S)

    atexit.register(close_all)
    return runners
