"""A package's logits equal our decoder's, for every family and feature of the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from russet.models.families import FAMILIES
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes.coreml import interpreted

from .conftest import CONTEXT, MIXED, largest_error, our_logits, run_calls, token_ids

EXACT = 1e-4
"""float32: the graph is right."""
HALF = 2e-2
"""Every operation rounded to float16: a share of the largest logit."""

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama-tied", {}),
    ("llama-bias", {}),
    ("llama-head-dim", {"head_dim": 12}),
    ("llama-yarn", {}),
    ("llama", {"hidden_act": "relu", "partial_rotary_factor": 0.5}),
    ("llama", {"attention_kind": "sigmoid", "max_position_embeddings": 64}),
    ("llama", {"attention_kind": "sigmoid", "sigmoid_bias": "visible", "hidden_act": "gelu"}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3-yarn", {}),
    ("gemma3-scaled", {"query_pre_attn_scalar": 16}),
    ("openelm", {}),
    ("afm", {}),
    ("llama", {"russet": {"kv_source": [None, None, 0]}}),
]
IDS = [f"{name} {' '.join(map(str, changes.values()))}".strip() for name, changes in MODELS]


@pytest.mark.parametrize(("name", "changes"), MODELS, ids=IDS)
def test_engine_layout(name: str, changes: dict, half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    """Chunks, parts of chunks and single tokens by turns, to the end of the context."""
    folder = half(name, **changes)
    package = exported(folder)
    exact, rounded = (interpreted(package, precision) for precision in ("float32", "declared"))
    assert exact.max_positions == CONTEXT == sum(MIXED)
    tokens = token_ids(exact.vocab_size or 0)
    wanted = our_logits(folder, tokens)
    assert largest_error(run_calls(exact, tokens), wanted) < EXACT
    assert largest_error(run_calls(rounded, tokens), wanted) < HALF * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", ["llama-bias", "gemma3"])
def test_swift_layout(name: str, half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    folder = half(name)
    package = exported(folder, layout="swift")
    exact, rounded = (interpreted(package, precision) for precision in ("float32", "declared"))
    tokens = token_ids(exact.vocab_size or 0)
    wanted = our_logits(folder, tokens)
    assert largest_error(run_calls(exact, tokens), wanted) < EXACT
    assert largest_error(run_calls(rounded, tokens), wanted) < HALF * max(1.0, np.abs(wanted).max())


def test_every_row_of_the_swift_layout_has_logits(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    folder = half("llama-bias")
    package = Interpreter(exported(folder, layout="swift"), "float32")
    tokens = token_ids(package.output_width("main") or 0, 12)
    mask = np.zeros((1, 1, 12, 12), np.float16)
    outputs = package.run("main", {"inputIds": tokens[None], "causalMask": mask}, package.make_state("main"))
    assert np.abs(outputs["logits"][0] - our_logits(folder, tokens)).max() < EXACT


def test_every_family_is_covered() -> None:
    assert {name.split("-")[0].replace("gemma3", "gemma3_text").replace("afm", "afm7") for name, _ in MODELS} == set(
        FAMILIES
    )


def test_going_back_and_on_gives_what_one_pass_gives(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    """Rows behind the position are never read, whatever was written there."""
    folder = half("llama-tied")
    decoder = interpreted(exported(folder), "float32")
    tokens, others = token_ids(decoder.vocab_size or 0), token_ids(decoder.vocab_size or 0, seed=1)
    state = decoder.make_state()
    decoder.run(others[:8], 0, state)
    decoder.run(others[8:16], 8, state)
    found = {}
    for start, size in ((0, 5), (5, 1), (6, 3)):
        found[start + size - 1] = decoder.run(tokens[start : start + size], start, state)
    assert largest_error(found, our_logits(folder, tokens[:9])) < EXACT


def test_updating_states_in_place_changes_nothing(half: Callable[..., Path], exported: Callable[..., Path]) -> None:
    package = exported(half("gemma3-scaled", query_pre_attn_scalar=16))
    saving, copying = Interpreter(package), Interpreter(package)
    for step in copying._schedule("decode"):
        step.in_place = False
    assert any(step.in_place for step in saving._schedule("decode"))
    states = [package.make_state("decode") for package in (saving, copying)]
    for position in range(4):
        inputs = {"inputIds": np.array([[position + 7]]), "position": np.array([position])}
        results = [p.run("decode", inputs, state) for p, state in zip((saving, copying), states, strict=True)]
        np.testing.assert_array_equal(results[0]["logits"], results[1]["logits"])
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])


def test_prefill_computes_layers_after_the_last_writer_for_one_row(
    half: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    """As the engine's own decoder does: AFM's last layers read an earlier layer's rows."""
    package = Interpreter(exported(half("afm")))
    block = package._block("prefill")
    rows = [
        op.outputs[0].type.tensorType.dimensions[1].constant.size
        for op in block.operations
        if op.type == "linear" and any("gate" in binding.name for binding in op.inputs["weight"].arguments)
    ]
    assert len(rows) > 2 and rows[0] == 8 and rows[-2:] == [1, 1]
