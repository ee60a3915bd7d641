"""Decode through Core ML on a Mac, and elsewhere through the interpreter, which is slow and for checking only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from russet.engine.errors import CheckpointError, InvalidOptionError
from russet.models.mil.interpreter import Interpreter, Precision
from russet.models.runtimes import coreml_package as names
from russet.models.runtimes.base import PackageDecoder
from russet.models.runtimes.coreml_package import description_of, packages_of

_logger = logging.getLogger("russet")

UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu-gpu": "CPU_AND_GPU", "cpu-ne": "CPU_AND_NE"}
DEFAULTUNITS = "cpu-gpu"
FLEXIBLE_CHUNK = 256
"""Tokens a call of a package that takes any number."""

INTERPRETER = "Russet's MIL interpreter, slow and for checking only"

files = description_of


class Runner(Protocol):
    """One package that can be run: Core ML's, or the interpreter's."""

    def make_state(self) -> Any: ...

    def run(self, function: str, inputs: dict[str, np.ndarray], state: Any) -> dict[str, np.ndarray]: ...


def load(path: Path, compute_units: str | None) -> CoreMLDecoder:
    """The decoder of a package, or of a folder of packages that are one model."""
    if sys.platform == "darwin":
        units = compute_units or DEFAULTUNITS
        runtime = f"Core ML on {units}"
        return CoreMLDecoder(path, [CoreMLRunner(part, units) for part in packages_of(path)], runtime)
    if compute_units is not None:
        raise InvalidOptionError(
            f"compute_units is {compute_units!r}, but Core ML is on macOS only and a slow interpreter serves here; "
            "leave it out."
        )
    _logger.warning("%s runs through %s: Core ML is on macOS only", path.name, INTERPRETER)
    return interpreted(path)


def interpreted(path: Path, precision: Precision = "declared") -> CoreMLDecoder:
    """The decoder of a package through the interpreter, on any system."""
    runners = [InterpreterRunner(part, precision) for part in packages_of(path)]
    return CoreMLDecoder(path, runners, INTERPRETER)


class CoreMLDecoder(PackageDecoder):
    """The parts of a model, one after the other: rows go from each to the next, logits come out of the last."""

    def __init__(self, path: Path, parts: list[Any], runtime: str) -> None:
        self.path = path
        self.parts: list[Runner] = parts
        self.runtime = runtime
        first, last = (Interpreter(package) for package in (packages_of(path)[0], packages_of(path)[-1]))
        self.layout = first.metadata.get(names.LAYOUT, "")
        if self.layout not in ("engine", "swift"):
            raise CheckpointError(
                f"{path} does not say its layout, so it was not made by `russet convert --to coreml`."
            )
        self.flexible = self.layout == "swift"
        self.padded = not self.flexible
        self.max_positions = int(first.metadata[names.CONTEXT])
        self.chunk = min(FLEXIBLE_CHUNK, self.max_positions) if self.flexible else int(first.metadata[names.CHUNK])
        self.vocab_size = last.output_width(last.default_function)

    def make_state(self) -> list[Any]:
        return [part.make_state() for part in self.parts]

    def run(self, tokens: np.ndarray, position: int, state: list[Any]) -> np.ndarray:
        if self.flexible:
            return self._run_flexible(tokens, position, state)
        count = len(tokens)
        function = names.DECODE if count == 1 else names.PREFILL
        inputs = {names.TOKENS: _padded(tokens, 1 if count == 1 else self.chunk)}
        outputs: dict[str, np.ndarray] = {}
        for part, rows in zip(self.parts, state, strict=True):
            inputs[names.POSITION] = np.array([position], np.int32)
            inputs |= {names.LAST_ROW: np.array([count - 1], np.int32)} if count > 1 else {}
            outputs = part.run(function, inputs, rows)
            inputs = {names.ROWS_IN: outputs.get(names.ROWS_OUT, np.zeros(0))}
        return np.asarray(outputs[names.LOGITS])[0, -1]

    def _run_flexible(self, tokens: np.ndarray, position: int, state: list[Any]) -> np.ndarray:
        count = len(tokens)
        mask = np.zeros((1, 1, count, position + count), np.float16)
        inputs = {names.TOKENS: tokens[None].astype(np.int32), names.MASK: mask}
        return np.asarray(self.parts[0].run(names.MAIN, inputs, state[0])[names.LOGITS])[0, -1]


class InterpreterRunner:
    """A package in numpy."""

    def __init__(self, package: Path, precision: Precision) -> None:
        self.interpreter = Interpreter(package, precision)

    def make_state(self) -> dict[str, np.ndarray]:
        return self.interpreter.make_state(self.interpreter.default_function)

    def run(self, function: str, inputs: dict[str, np.ndarray], state: Any) -> dict[str, np.ndarray]:
        wanted = self.interpreter.inputs(function)
        return self.interpreter.run(function, {name: inputs[name] for name in wanted}, state)


class CoreMLRunner:
    """A package in Core ML; its functions are loaded when they are first called, and share one state."""

    def __init__(self, package: Path, units: str) -> None:
        import coremltools as ct

        self._package = package
        self._units = getattr(ct.ComputeUnit, UNITS[units])
        self._spec = Interpreter(package)
        self._functions: dict[str, Any] = {}

    def make_state(self) -> Any:
        return self._function(self._spec.default_function).make_state()

    def run(self, function: str, inputs: dict[str, np.ndarray], state: Any) -> dict[str, np.ndarray]:
        wanted = self._spec.inputs(function)
        return self._function(function).predict({name: inputs[name] for name in wanted}, state=state)

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            import coremltools as ct

            chosen = {"function_name": name} if len(self._spec.functions) > 1 else {}
            self._functions[name] = ct.models.MLModel(str(self._package), compute_units=self._units, **chosen)  # pyright: ignore[reportArgumentType]
        return self._functions[name]


def _padded(tokens: np.ndarray, count: int) -> np.ndarray:
    """Token ids [1, count]; rows behind the tokens are written and never read."""
    row = np.zeros((1, count), np.int32)
    row[0, : len(tokens)] = tokens
    return row
