"""float16's limits: activations whose squares overflow, positions that it cannot count, contexts to their end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.exporting import ExportOptions, export
from russet.engine.errors import WeightsError
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes.coreml import interpreted

from .conftest import largest_error, our_logits, run_calls, token_ids


def with_embedding(folder: Path, target: Path, change: Callable[[np.ndarray], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = mx.load(str(target / "model.safetensors"))
    assert isinstance(tensors, dict)
    name = next(name for name in tensors if "embed_tokens" in name)
    table = np.array(tensors[name].astype(mx.float32))
    change(table)
    tensors[name] = mx.array(table).astype(mx.float16)
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    return target


def test_norms_hold_channels_whose_squares_overflow(
    half: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path
) -> None:
    """Trained models have channels of several hundred; the square of 256 is float16's infinity."""

    def outliers(table: np.ndarray) -> None:
        table[:, 3], table[:, 7] = 400, -900

    folder = with_embedding(half("llama-bias"), tmp_path / "outliers", outliers)
    decoder = interpreted(exported(folder))
    tokens = token_ids(decoder.vocab_size or 0)
    wanted = our_logits(folder, tokens)
    assert largest_error(run_calls(decoder, tokens), wanted) < 2e-2 * max(1.0, np.abs(wanted).max())


def test_activations_that_do_not_fit_are_refused(
    half: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path
) -> None:
    def huge(table: np.ndarray) -> None:
        table[:] = np.where(table > 0, 6e4, -6e4)

    folder = with_embedding(half("llama-tied"), tmp_path / "huge", huge)
    with pytest.raises(WeightsError, match="answers with numbers that are not finite"):
        exported(folder)


def test_a_package_that_computes_something_else_is_refused(
    half: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before a package appears: here the graph leaves the rotation of queries and keys out."""
    monkeypatch.setattr("russet.converters.coreml.rotation.Rotation.__call__", lambda self, x: x)
    with pytest.raises(WeightsError, match=r"logits differ from the model's by .* of the largest"):
        export(half("llama-tied"), tmp_path / "x.mlpackage", "coreml", options=ExportOptions(context=32))
    assert not list(tmp_path.iterdir())


def test_positions_above_2048_are_told_apart(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    """float16 has even numbers only from there on; the last positions of a window and of the context are right."""
    folder = half("mistral", max_position_embeddings=2112, sliding_window=24)
    package = exported(folder, context=2112, chunk=32)
    decoder = interpreted(package, "declared")
    tokens = token_ids(decoder.vocab_size or 0, 2112)
    # What three layers with this window see of a position lies within 72 of it, and only distances count for them, so
    # that our decoder may begin at 0.
    start = 1952
    wanted = our_logits(folder, tokens[start:])
    state, position, found = decoder.make_state(), start, {}
    for size in (32, 32, 32, 31, 1, 32):
        logits = decoder.run(tokens[position : position + size], position, state)
        position += size
        if position > 2048:
            found[position - 1 - start] = logits.astype(np.float32)
    assert position == 2112 and len(found) == 3
    assert largest_error(found, wanted) < 2e-2 * max(1.0, np.abs(wanted).max())


def test_positions_are_compared_as_integers(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    spec = Interpreter(exported(half("llama-tied"))).spec.mlProgram.functions["prefill"]
    operations = spec.block_specializations[spec.opset].operations
    made = {output.name: output.type.tensorType.dataType for op in operations for output in op.outputs}
    made |= {item.name: item.type.tensorType.dataType for item in spec.inputs}
    compared = [op for op in operations if op.type in ("less_equal", "greater", "less", "greater_equal")]
    assert compared and {made[op.inputs[side].arguments[0].name] for op in compared for side in "xy"} == {23}


def test_the_config_of_a_package_says_nothing_of_mlx(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    from russet.models.opening import description_folder

    config = json.loads((description_folder(exported(half("llama-tied"))) / "config.json").read_text())
    assert "quantization" not in config and config["model_type"] == "llama"
