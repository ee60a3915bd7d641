"""The MIL interpreter: operations against formulas, states, and what it refuses of packages that are damaged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

import coremltools as ct
from coremltools.converters.mil.converter import mil_convert
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.converters.mil.mil.program import Placeholder, StateTensorPlaceholder

from russet.engine.errors import CheckpointError, UnsafeCheckpointError, UnsupportedModelError
from russet.models.mil.interpreter import Interpreter
from russet.models.mil.types import from_bytes


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """`package(build)`: a saved package of one function of x, float16 [2, 4]; `stateful` adds float16 [1, 8, 4]."""

    def write(build: Callable[..., list[Any]], stateful: bool = False) -> Path:
        inputs: dict[str, Any] = {"x": Placeholder((2, 4), dtype=types.fp16, name="x")}
        if stateful:
            inputs["cache"] = StateTensorPlaceholder((1, 8, 4), dtype=types.fp16, name="cache")
        with Function(inputs, opset_version=ct.target.iOS18) as function:
            function.set_outputs(build(*function.inputs.values()))
        program = Program()
        program.add_function("main", function)
        model = mil_convert(
            program,
            convert_from="milinternal",
            convert_to="mlprogram",
            compute_units=ct.ComputeUnit.CPU_ONLY,
            pass_pipeline=ct.PassPipeline.EMPTY,
            specification_version=int(ct.target.iOS18),
            skip_model_load=True,
        )
        path = tmp_path / "test.mlpackage"
        model.save(str(path))
        return path

    return write


X = np.array([[0.5, -1.25, 3.0, 0.0], [2.0, -0.125, -4.0, 1.0]], np.float32)


def evaluate(path: Path, x: np.ndarray = X, precision: Any = "float32") -> np.ndarray:
    interpreter = Interpreter(path, precision)
    outputs = interpreter.run("main", {"x": x}, interpreter.make_state("main"))
    return next(iter(outputs.values()))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "silu": (lambda x: mb.silu(x=x), lambda x: x * sigmoid(x)),
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
    "gelu_tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    ),
    "relu": (lambda x: mb.relu(x=x), lambda x: np.where(x > 0, x, 0)),
    "softmax": (lambda x: mb.softmax(x=x, axis=-1), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    "round": (lambda x: mb.round(x=x), lambda x: np.array([[0, -1, 3, 0], [2, 0, -4, 1]])),
    "clip": (lambda x: mb.clip(x=x, alpha=np.float16(-1), beta=np.float16(2)), lambda x: np.clip(x, -1, 2)),
    "mean": (lambda x: mb.reduce_mean(x=x, axes=[-1], keep_dims=True), lambda x: x.sum(-1, keepdims=True) / 4),
    "max": (lambda x: mb.reduce_max(x=x, axes=[0], keep_dims=False), lambda x: np.array([2, -0.125, 3, 1])),
    "transpose": (lambda x: mb.transpose(x=x, perm=[1, 0]), lambda x: x.T),
    "slice": (lambda x: mb.slice_by_size(x=x, begin=[0, 1], size=[-1, 2]), lambda x: x[:, 1:3]),
    "gather": (lambda x: mb.gather(x=x, indices=np.array([2, 2], np.int32), axis=1), lambda x: x[:, [2, 2]]),
    "matmul": (lambda x: mb.matmul(x=x, y=x, transpose_y=True), lambda x: x @ x.T),
    "concat": (lambda x: mb.concat(values=[x, x], axis=0), lambda x: np.vstack([x, x])),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(0.5)),
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.5),
    ),
    "select": (
        lambda x: mb.select(cond=mb.greater(x=x, y=np.float16(0)), a=x, b=mb.mul(x=x, y=np.float16(2))),
        lambda x: np.where(x > 0, x, 2 * x),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operations(name: str, package: Callable[..., Path]) -> None:
    emit, formula = CASES[name]
    np.testing.assert_allclose(evaluate(package(lambda x: [emit(x)])), formula(X), atol=1e-6)


def test_declared_formats_round_every_result(package: Callable[..., Path]) -> None:
    """1 + 2^-11 is no float16, so that it is 1 again before 1 is subtracted."""

    def build(x: Any) -> list[Any]:
        near = mb.add(x=mb.mul(x=x, y=np.float16(0)), y=np.float16(1))
        return [mb.sub(x=mb.add(x=near, y=np.float16(2.0**-11)), y=np.float16(1))]

    path = package(build)
    assert (evaluate(path, precision="declared") == 0).all()
    assert (evaluate(path, precision="float32") == 2.0**-11).all()


def test_a_state_keeps_what_was_written(package: Callable[..., Path]) -> None:
    def build(x: Any, state: Any) -> list[Any]:
        rows = mb.expand_dims(x=x, axes=[0])
        now = mb.read_state(input=state)
        first = mb.coreml_update_state(
            state=state, value=mb.slice_update(x=now, update=rows, begin=[0, 0, 0], end=[1, 2, 4])
        )
        value = mb.slice_update(x=first, update=rows, begin=[0, 5, 0], end=[1, 7, 4])
        return [mb.coreml_update_state(state=state, value=value)]

    interpreter = Interpreter(package(build, stateful=True), "float32")
    state = interpreter.make_state("main")
    wanted = np.zeros((1, 8, 4))
    for x in (X, X + 1):
        wanted[0, :2] = wanted[0, 5:7] = x
        outputs = interpreter.run("main", {"x": x}, state)
        np.testing.assert_array_equal(next(iter(outputs.values())), wanted)
        np.testing.assert_array_equal(state["cache"], wanted)
    assert [step.in_place for step in interpreter._schedule("main") if step.kind == "slice_update"] == [True, True]


def test_an_update_is_not_in_place_where_what_was_there_is_read_later(package: Callable[..., Path]) -> None:
    def build(x: Any, state: Any) -> list[Any]:
        before = mb.read_state(input=state)
        old = mb.slice_by_size(x=before, begin=[0, 0, 0], size=[1, 2, 4])
        rows = mb.expand_dims(x=x, axes=[0])
        value = mb.slice_update(x=before, update=rows, begin=[0, 0, 0], end=[1, 2, 4])
        after = mb.coreml_update_state(state=state, value=value)
        return [mb.sub(x=mb.slice_by_size(x=after, begin=[0, 0, 0], size=[1, 2, 4]), y=old)]

    path = package(build, stateful=True)
    np.testing.assert_array_equal(evaluate(path)[0], X)


def test_an_update_that_is_not_stored_leaves_the_state(package: Callable[..., Path]) -> None:
    def build(x: Any, state: Any) -> list[Any]:
        rows = mb.expand_dims(x=x, axes=[0])
        return [mb.slice_update(x=mb.read_state(input=state), update=rows, begin=[0, 0, 0], end=[1, 2, 4])]

    interpreter = Interpreter(package(build, stateful=True), "float32")
    state = interpreter.make_state("main")
    interpreter.run("main", {"x": X}, state)
    assert not state["cache"].any()


@pytest.mark.parametrize(
    ("data_type", "raw", "values"),
    [
        (25, b"\x1f\x82", [-1, 1, 2, -8]),
        (35, b"\x1f\x82", [15, 1, 2, 8]),
        (36, b"\xe4", [0, 1, 2, 3]),
        (39, b"\x88\x06", [0, 1, 2, 3]),
        (37, b"\x05", [1, 0, 1, 0]),
        (21, b"\xff\x01\x80\x7f", [-1, 1, -128, 127]),
    ],
)
def test_numbers_below_a_byte(data_type: int, raw: bytes, values: list[int]) -> None:
    assert from_bytes(raw, data_type, (4,)).tolist() == values


def test_compressed_weights(package: Callable[..., Path]) -> None:
    codes = np.arange(8).reshape(2, 4) - 4
    tables = np.array([[[[1.0], [2.0], [3.0], [4.0]]], [[[-1.0], [-2.0], [-3.0], [-4.0]]]], np.float16)

    def build(x: Any) -> list[Any]:
        scaled = mb.constexpr_blockwise_shift_scale(
            data=codes.astype(types.nptype_from_builtin(types.int4)),
            scale=np.array([[0.5, 2.0], [1.0, 4.0]], np.float16),
        )
        looked_up = mb.constexpr_lut_to_dense(
            indices=np.array([[0, 1, 2, 3], [3, 2, 1, 0]]).astype(types.nptype_from_builtin(types.uint2)), lut=tables
        )
        return [mb.add(x=mb.linear(x=x, weight=scaled), y=mb.linear(x=x, weight=looked_up))]

    weight = codes * np.array([[0.5, 0.5, 2, 2], [1, 1, 4, 4]]) + np.array([[1, 2, 3, 4], [-4, -3, -2, -1]])
    np.testing.assert_allclose(evaluate(package(build)), X @ weight.T, rtol=1e-6)


def refused(path: Path) -> str:
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        evaluate(path)
    return str(caught.value)


def test_damaged_packages_are_refused_by_name(package: Callable[..., Path], tmp_path: Path) -> None:
    weight = np.arange(64, dtype=np.float16).reshape(16, 4)
    whole = package(lambda x: [mb.linear(x=x, weight=weight)])
    data = Path("Data/com.apple.CoreML")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    cut = copy("cut")
    file = cut / data / "weights/weight.bin"
    file.write_bytes(file.read_bytes()[:80])
    assert "ends before a weight" in refused(cut)
    torn = copy("torn")
    file = torn / data / "weights/weight.bin"
    file.write_bytes(file.read_bytes()[:64] + bytes(64) + file.read_bytes()[128:])
    assert "is damaged at byte 64" in refused(torn)
    bare = copy("bare")
    (bare / data / "weights/weight.bin").unlink()
    assert "could not be read as a weight file" in refused(bare)
    spec = copy("spec")
    (spec / data / "model.mlmodel").write_bytes(b"\xff\xff")
    assert "not a whole Core ML package" in refused(spec)
    manifest = copy("manifest")
    (manifest / "Manifest.json").write_text("{")
    assert "is not a Core ML package" in refused(manifest)
    outside = copy("outside")
    text = (outside / "Manifest.json").read_text().replace("com.apple.CoreML/model.mlmodel", "../../../secret")
    (outside / "Manifest.json").write_text(text)
    assert json.loads(text)
    with pytest.raises(UnsafeCheckpointError, match="outside the package"):
        evaluate(outside)


def test_what_is_not_implemented_or_cannot_be_is_refused(package: Callable[..., Path]) -> None:
    path = package(lambda x: [mb.cumsum(x=x, axis=0)])
    assert "uses cumsum, which Russet's interpreter does not have" in refused(path)
    interpreter = Interpreter(path)
    with pytest.raises(CheckpointError, match="has no function 'prefill'; it has main"):
        interpreter.inputs("prefill")


def test_inputs_of_another_shape_are_refused(package: Callable[..., Path]) -> None:
    interpreter = Interpreter(package(lambda x: [mb.relu(x=x)]))
    with pytest.raises(CheckpointError, match=r"x has shape \[3, 4\] where the package declares \[2, 4\]"):
        interpreter.run("main", {"x": np.zeros((3, 4))}, interpreter.make_state("main"))
    with pytest.raises(CheckpointError, match="an input 'x' that was not given"):
        interpreter.run("main", {}, interpreter.make_state("main"))
