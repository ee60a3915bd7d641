"""A second opinion on the interpreter: coremltools' own numpy semantics; and faults in a graph are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types
from coremltools.converters.mil.mil.operation import Operation

from russet.models.mil.interpreter import OPERATIONS, Interpreter
from russet.models.runtimes.coreml import CoreMLDecoder, InterpreterRunner, interpreted

from .conftest import our_logits, run_calls, token_ids

CALLS = (8, 5, 1, 8)


class ValueInference:
    """A package whose operations coremltools evaluates itself, one by one, as it folds constants.

    `borrowed` are operations for which it has no numbers, only shapes: those come from the interpreter.
    """

    def __init__(self, package: Path) -> None:
        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        self.program = load(spec, spec.specificationVersion, model.weights_dir)
        self.borrowed: set[str] = set()

    def make_state(self) -> dict[str, np.ndarray]:
        inputs = self.program.functions["decode"].inputs.items()
        return {
            name: np.zeros(var.sym_type.wrapped_type().get_shape(), np.float16)
            for name, var in inputs
            if types.is_state(var.sym_type)
        }

    def run(self, function: str, inputs: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        graph = self.program.functions[function]
        values: dict[Any, Any] = {
            var: np.asarray(inputs[name]).astype(types.nptype_from_builtin(var.dtype))
            for name, var in graph.inputs.items()
            if not types.is_state(var.sym_type)
        }
        with Function({}, opset_version=ct.target.iOS18) as scratch:
            for operation in graph.operations:
                self._evaluate(operation, values, state)
            scratch.set_outputs([mb.const(val=np.float16(0))])
        return {var.name: values[var] for var in graph.outputs}

    def _evaluate(self, operation: Any, values: dict[Any, Any], state: dict[str, np.ndarray]) -> None:
        kind = operation.op_type

        def value(var: Any) -> Any:
            return values.get(var, var.val)

        if kind == "const":
            return
        if kind == "read_state":
            values[operation.outputs[0]] = state[operation.input.name].copy()
        elif kind == "coreml_update_state":
            state[operation.state.name] = values[operation.outputs[0]] = value(operation.value).copy()
        elif kind.startswith("constexpr_"):
            values[operation.outputs[0]] = operation.materialized_val_inference()
        else:
            arguments = {
                name: [np.asarray(value(item)) for item in var] if isinstance(var, list | tuple) else value(var)
                for name, var in operation.inputs.items()
                if var is not None
            }
            values[operation.outputs[0]] = self._own(operation, arguments)

    def _own(self, operation: Any, arguments: dict[str, Any]) -> np.ndarray:
        output = types.nptype_from_builtin(operation.outputs[0].dtype)
        if type(operation).value_inference is Operation.value_inference:
            self.borrowed.add(operation.op_type)
            arrays = {
                name: value if isinstance(value, list) else np.asarray(value) for name, value in arguments.items()
            }
            return np.asarray(OPERATIONS[operation.op_type](**arrays)).astype(output)
        plain = {name: bool(value) if isinstance(value, np.bool_) else value for name, value in arguments.items()}
        found = getattr(mb, operation.op_type)(**plain).val
        assert found is not None, operation.op_type
        return np.asarray(found)


@pytest.mark.parametrize(("name", "weights"), [("qwen3-yarn", None), ("llama-tied", "palette4")])
def test_coremltools_own_numbers_agree(
    name: str, weights: str | None, half: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    package = exported(half(name), weights=weights)
    oracle, ours = ValueInference(package), Interpreter(package)
    theirs_state, our_state = oracle.make_state(), ours.make_state("decode")
    tokens = token_ids(ours.output_width("decode") or 0)
    for position, count in ((0, 8), (8, 3), (11, 1), (12, 1)):
        function = "decode" if count == 1 else "prefill"
        row = np.zeros((1, 1 if count == 1 else 8), np.int32)
        row[0, :count] = tokens[position : position + count]
        inputs = {"inputIds": row, "position": np.array([position], np.int32)}
        inputs |= {"lastRow": np.array([count - 1], np.int32)} if count > 1 else {}
        wanted = oracle.run(function, inputs, theirs_state)["logits"].astype(np.float32)
        found = ours.run(function, inputs, our_state)["logits"].astype(np.float32)
        np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())
        assert found.argmax() == wanted.argmax()
    for state, wanted in theirs_state.items():
        np.testing.assert_allclose(our_state[state], wanted, atol=2e-2 * np.abs(wanted).max())
    assert oracle.borrowed == {"silu"}


def mutated(package: Path, mutate: Callable[[Any], None]) -> CoreMLDecoder:
    """The package's decoder with both functions changed before they run."""
    decoder = interpreted(package, "float32")
    (runner,) = decoder.parts
    assert isinstance(runner, InterpreterRunner)
    for name in ("prefill", "decode"):
        function = runner.interpreter.spec.mlProgram.functions[name]
        mutate(function.block_specializations[function.opset].operations)
    return decoder


def drop_mask(operations: Any) -> None:
    """Every key is seen, unwritten ones included."""
    attention = next(op for op in operations if op.type == "scaled_dot_product_attention")
    del attention.inputs["attn_mask"]


def shift_mask(operations: Any) -> None:
    """A query sees the key behind it."""
    comparison = next(op for op in operations if op.type == "less_equal")
    comparison.type = "less"


def swap_rotary_halves(operations: Any) -> None:
    joined = next(op for op in operations if op.type == "concat" and op.outputs[0].type.tensorType.rank == 4)
    first, second = joined.inputs["values"].arguments
    first.name, second.name = second.name, first.name


def drop_write(operations: Any) -> None:
    """The last row of a layer is computed and forgotten."""
    del operations[[i for i, op in enumerate(operations) if op.type == "write_state"][-1]]


def wrong_scale(operations: Any) -> None:
    """Rotated queries are doubled before the last attention."""
    changed = [type(operations[0]).FromString(op.SerializeToString()) for op in operations]
    at = [i for i, op in enumerate(changed) if op.type == "add" and op.outputs[0].type.tensorType.rank == 4][-2]
    doubled = type(changed[at]).FromString(changed[at].SerializeToString())
    name = changed[at].outputs[0].name
    for operand in ("x", "y"):
        doubled.inputs[operand].arguments[0].name = name
    doubled.outputs[0].name = f"{name}_doubled"
    for op in changed[at + 1 :]:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name == name:
                    binding.name = doubled.outputs[0].name
    del operations[:]
    operations.extend([*changed[: at + 1], doubled, *changed[at + 1 :]])


def keys_for_values(operations: Any) -> None:
    attention = next(op for op in operations if op.type == "scaled_dot_product_attention")
    attention.inputs["value"].arguments[0].name = attention.inputs["key"].arguments[0].name


def wrong_activation(operations: Any) -> None:
    next(op for op in operations if op.type == "silu").type = "sigmoid"


def wrong_norm(operations: Any) -> None:
    """The mean of squares becomes their maximum."""
    next(op for op in operations if op.type == "reduce_mean").type = "reduce_max"


def drop_residual(operations: Any) -> None:
    last = [op for op in operations if op.type == "add" and op.outputs[0].type.tensorType.rank == 3][-1]
    last.inputs["x"].arguments[0].name = last.inputs["y"].arguments[0].name


MUTATIONS = (
    drop_mask,
    shift_mask,
    swap_rotary_halves,
    drop_write,
    wrong_scale,
    keys_for_values,
    wrong_activation,
    wrong_norm,
    drop_residual,
)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_faults_in_a_graph_are_noticed(
    mutate: Callable[[Any], None], half: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    """Each moves the logits by far more than what the comparison with our decoder allows."""
    folder = half("llama-tied")
    decoder = mutated(exported(folder), mutate)
    tokens = token_ids(decoder.vocab_size or 0)
    wanted = our_logits(folder, tokens)
    found = run_calls(decoder, tokens, CALLS)
    assert max(float(np.abs(logits - wanted[position]).max()) for position, logits in found.items()) > 0.02


def test_the_comparison_passes_without_a_fault(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    folder = half("llama-tied")
    decoder = mutated(exported(folder), lambda operations: None)
    tokens = token_ids(decoder.vocab_size or 0)
    wanted = our_logits(folder, tokens)
    found = run_calls(decoder, tokens, CALLS)
    assert max(float(np.abs(logits - wanted[position]).max()) for position, logits in found.items()) < 1e-4
