"""Execute the functions of a saved ML program, operation by operation, with its state.

`precision` "declared" rounds every result to the format that the package declares for it, sums within an operation
being in float32; "float32" ignores declared float formats and evaluates in float32, which checks the graph and not its
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from russet.engine.errors import CheckpointError, UnsupportedModelError
from russet.models.mil.arrays import ARRAYS
from russet.models.mil.elementwise import ELEMENTWISE, Operation
from russet.models.mil.package_file import WeightFile, read_spec, weight_path
from russet.models.mil.products import PRODUCTS
from russet.models.mil.schedule import Step, schedule
from russet.models.mil.types import FLOAT16, FLOAT32, from_bytes, numpy_type

OPERATIONS: dict[str, Operation] = {**ELEMENTWISE, **ARRAYS, **PRODUCTS}

Precision = Literal["declared", "float32"]
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Port:
    """An input, state or output: its shape (None where it is flexible) and format."""

    shape: tuple[int | None, ...]
    dtype: np.dtype


class Interpreter:
    """A .mlpackage that can be run. Raises CheckpointError for one that is damaged."""

    def __init__(self, package: Path, precision: Precision = "declared") -> None:
        self.package = package
        self.spec, self._base = read_spec(package)
        self.metadata = dict(self.spec.description.metadata.userDefined)
        self._wide = precision == "float32"
        self._files: dict[str, WeightFile] = {}
        self._blobs: dict[tuple[str, int], np.ndarray] = {}
        self._expanded: dict[tuple[int, ...], np.ndarray] = {}
        self._schedules: dict[str, list[Step]] = {}
        self._constants: dict[str, dict[str, Any]] = {}

    @property
    def functions(self) -> list[str]:
        return list(self.spec.mlProgram.functions)

    @property
    def default_function(self) -> str:
        return self.spec.description.defaultFunctionName or self.functions[0]

    def inputs(self, function: str) -> dict[str, Port]:
        return {
            item.name: self._port(item.type.tensorType)
            for item in self._function(function).inputs
            if item.type.WhichOneof("type") == "tensorType"
        }

    def states(self, function: str) -> dict[str, Port]:
        return {
            item.name: self._port(item.type.stateType.wrappedType.tensorType)
            for item in self._function(function).inputs
            if item.type.WhichOneof("type") == "stateType"
        }

    def output_width(self, function: str) -> int | None:
        """The last axis of a function's first output, or None where it is flexible."""
        block = self._block(function)
        made = {output.name: output for op in block.operations for output in op.outputs}
        return self._port(made[block.outputs[0]].type.tensorType).shape[-1]

    def make_state(self, function: str) -> State:
        """Zeros for every state of a function, as Core ML makes them."""
        ports = self.states(function)
        return {name: np.zeros([n or 1 for n in port.shape], port.dtype) for name, port in ports.items()}

    def run(self, function: str, inputs: dict[str, np.ndarray], state: State) -> dict[str, np.ndarray]:
        """The outputs of one call, which updates `state`."""
        steps, values = self._schedule(function), dict(self._constants[function])
        for name, port in self.inputs(function).items():
            if name not in inputs:
                raise CheckpointError(f"{self.package.name} has an input {name!r} that was not given.")
            values[name] = _fitting(name, np.asarray(inputs[name]).astype(port.dtype), port.shape)
        # What overflows is infinite on a device too, and found in the results.
        with np.errstate(all="ignore"):
            for step in steps:
                self._run_step(step, values, state)
        return {name: values[name] for name in self._block(function).outputs}

    def _run_step(self, step: Step, values: dict[str, Any], state: State) -> None:
        if step.kind == "read_state":
            values[step.outputs[0].name] = state[step.state]
        elif step.kind == "write_state":
            state[step.state] = values[step.data]
        else:
            self._compute(step, values)
        for name in step.last_uses:
            del values[name]

    def _compute(self, step: Step, values: dict[str, Any]) -> None:
        arguments = {
            key: [values[name] for name in source] if isinstance(source, list) else values[source]
            for key, source in step.sources.items()
        }
        if step.in_place:
            arguments["in_place"] = True
        try:
            result = OPERATIONS[step.kind](**arguments)
        except (IndexError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.package.name} has an operation {step.kind} ({step.outputs[0].name}) that cannot be: {error}."
            ) from error
        (output,) = step.outputs
        values[output.name] = self._stored(output, np.asarray(result))

    def _stored(self, output: Any, value: np.ndarray) -> np.ndarray:
        """A result in the shape and format that the package declares for it."""
        declared = output.type.tensorType
        port = self._port(declared)
        if declared.rank == 0 and value.size == 1:
            value = value.reshape(())
        return _fitting(output.name, value, port.shape).astype(port.dtype, copy=False)

    def _schedule(self, function: str) -> list[Step]:
        if function not in self._schedules:
            constants: dict[str, Any] = {}
            unknown = {op.type for op in self._block(function).operations} - KNOWN
            if unknown:
                raise UnsupportedModelError(
                    f"{self.package.name} uses {', '.join(sorted(unknown))}, which Russet's interpreter does not have."
                )
            steps = schedule(self._block(function), constants, self._value)
            for step in [step for step in steps if step.kind.startswith("constexpr_")]:
                constants[step.outputs[0].name] = self._expand(step, constants)
                steps.remove(step)
            self._schedules[function], self._constants[function] = steps, constants
        return self._schedules[function]

    def _expand(self, step: Step, constants: dict[str, Any]) -> np.ndarray:
        """A compressed weight, once for all functions that share its parts."""
        parts = {key: constants[name] for key, name in step.sources.items() if isinstance(name, str)}
        key = tuple(id(part) for part in parts.values())
        if key not in self._expanded:
            dense = OPERATIONS[step.kind](**parts)
            self._expanded[key] = self._widened(self._stored(step.outputs[0], dense))
        return self._expanded[key]

    def _value(self, value: Any) -> Any:
        """A constant: a number, an array, a string; None for what no operation needs."""
        if value.type.WhichOneof("type") != "tensorType":
            return None
        declared = value.type.tensorType
        shape = tuple(axis.constant.size for axis in declared.dimensions)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue, declared.dataType, shape)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        numbers = getattr(tensor, kind).values
        if kind == "strings":
            return list(numbers) if shape else numbers[0]
        if kind == "bytes":
            return self._widened(from_bytes(numbers, declared.dataType, shape))
        return np.array(list(numbers)).astype(self._dtype(declared.dataType)).reshape(shape)

    def _blob(self, place: Any, data_type: int, shape: tuple[int, ...]) -> np.ndarray:
        key = (place.fileName, place.offset)
        if key not in self._blobs:
            if place.fileName not in self._files:
                self._files[place.fileName] = WeightFile(weight_path(self._base, place.fileName))
            self._blobs[key] = self._widened(self._files[place.fileName].read(place.offset, data_type, shape))
        return self._blobs[key]

    def _widened(self, array: np.ndarray) -> np.ndarray:
        """Constants of 16 bits are held in float32, their values unchanged, so that no product widens them again."""
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def _function(self, name: str) -> Any:
        if name not in self.spec.mlProgram.functions:
            raise CheckpointError(f"{self.package.name} has no function {name!r}; it has {', '.join(self.functions)}.")
        return self.spec.mlProgram.functions[name]

    def _block(self, name: str) -> Any:
        function = self._function(name)
        return function.block_specializations[function.opset]

    def _port(self, tensor: Any) -> Port:
        shape = tuple(
            axis.constant.size if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions
        )
        return Port(shape, self._dtype(tensor.dataType))

    def _dtype(self, data_type: int) -> np.dtype:
        if self._wide and data_type in (FLOAT16, FLOAT32):
            return np.dtype(np.float32)
        return numpy_type(data_type)


KNOWN = {*OPERATIONS, "const", "read_state", "write_state"}


def _fitting(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    if len(array.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise CheckpointError(f"{name} has shape {list(array.shape)} where the package declares {list(shape)}.")
    return array
