"""What Hugging Face's Swift client calls, and what it gets.

`LanguageModelWithStatefulKVCache` of huggingface/swift-transformers (LanguageModel.swift) sends the whole prompt, then
one token a call, and as `causalMask` zeros [1, 1, 1, n + 1] for n tokens so far: one query row, one position too many.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from russet.converters.exporting import ExportOptions, export
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes.coreml_package import SWIFT_NAME

from .conftest import our_logits, token_ids


def client_logits(package: Interpreter, tokens: np.ndarray, prompt: int, extra: int) -> dict[int, np.ndarray]:
    """The last row's logits of each call by position: the prompt at once, then one token a call."""
    state, found = package.make_state("main"), {}
    calls = [(0, prompt), *((i, i + 1) for i in range(prompt, len(tokens)))]
    for start, end in calls:
        mask = np.zeros((1, 1, 1, end + extra), np.float16)
        inputs = {"inputIds": tokens[None, start:end], "causalMask": mask}
        found[end - 1] = package.run("main", inputs, state)["logits"][0, -1]
    return found


@pytest.mark.parametrize("extra", [1, 0], ids=["as the client sends it", "with the right length"])
@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_the_client_gets_right_logits(
    name: str, extra: int, half: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    folder = half(name)
    package = Interpreter(exported(folder, layout="swift"), "float32")
    tokens = token_ids(package.output_width("main") or 0, 24)
    wanted = our_logits(folder, tokens)
    for position, logits in client_logits(package, tokens, 10, extra).items():
        assert np.abs(logits - wanted[position]).max() < 1e-4
        assert logits.argmax() == wanted[position].argmax()


def test_the_names_are_those_that_the_client_looks_for(
    half: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    package = Interpreter(exported(half("llama-tied"), layout="swift"))
    assert package.functions == ["main"]
    assert set(package.inputs("main")) == {"inputIds", "causalMask"}
    assert set(package.states("main")) == {"keyCache", "valueCache"}
    description = package.spec.description
    assert [item.name for item in description.output] == ["logits"]
    ids = next(item for item in description.input if item.name == "inputIds").type.multiArrayType
    assert [(size.lowerBound, size.upperBound) for size in ids.shapeRange.sizeRanges] == [(1, 1), (1, 40)]


def test_the_tokenizer_is_named_where_the_repository_is_known(half: Callable[..., Path], tmp_path: Path) -> None:
    from russet.converters.coreml.export import export as export_coreml
    from russet.converters.model_tensors import ModelTensors
    from russet.engine.progress import SilentProgress

    options = ExportOptions(layout="swift", context=32)
    model = ModelTensors(half("llama-tied"), repository="org/name")
    export_coreml(model, tmp_path / "named.mlpackage", options, False, SilentProgress())
    assert Interpreter(tmp_path / "named.mlpackage").metadata[SWIFT_NAME] == "org/name"
    report = export(half("llama-tied"), tmp_path / "x.mlpackage", "coreml", options=options, dry_run=True)
    assert "finds the tokenizer by the name of a hub repository" in report.notes[-1]
