"""Packages in the engine: through the interpreter here, and through a stand-in for Core ML as on a Mac."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

import russet
from russet.converters.exporting import ExportOptions, export
from russet.engine.cli import main
from russet.engine.errors import (
    CheckpointError,
    InvalidOptionError,
    ModelNotFoundError,
    PromptTooLongError,
    SessionFileError,
)
from russet.models.mil.interpreter import Interpreter
from russet.models.runtimes import coreml
from russet.models.runtimes.coreml import CoreMLDecoder, interpreted

ct = pytest.importorskip("coremltools")

CONTEXT, CHUNK = 192, 16


@pytest.fixture(scope="module")
def packages(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`packages(layout)`: the tiny model as a package."""
    root = tmp_path_factory.mktemp("packages")

    def made(layout: str) -> Path:
        path = root / f"{layout}.mlpackage"
        if not path.exists():
            options = ExportOptions(layout=layout, context=CONTEXT, chunk=CHUNK)  # type: ignore[arg-type]
            export(tiny_folder, path, "coreml", options=options)
        return path

    return made


class StandIn:
    """`coremltools.models.MLModel` with a state, as Core ML on a Mac offers it: strict in what it takes."""

    made: ClassVar[list[tuple[str, Any, str | None]]] = []

    def __init__(self, path: str, compute_units: Any, function_name: str | None = None) -> None:
        self.interpreter = Interpreter(Path(path), "float32")
        self.function = function_name or "main"
        assert self.function in self.interpreter.functions
        StandIn.made.append((Path(path).name, compute_units, function_name))

    def make_state(self) -> dict[str, np.ndarray]:
        return self.interpreter.make_state(self.function)

    def predict(self, inputs: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ports = self.interpreter.inputs(self.function)
        assert inputs.keys() == ports.keys()
        wanted = {"inputIds": np.int32, "position": np.int32, "lastRow": np.int32, "causalMask": np.float16}
        assert all(inputs[name].dtype == wanted[name] for name in inputs)
        outputs = self.interpreter.run(self.function, inputs, state)
        return {name: value.astype(np.float32) for name, value in outputs.items()}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", StandIn)
    StandIn.made = []
    return StandIn


PROMPT = "Why is the sky blue, and what is it that makes the evening red?"


@pytest.mark.parametrize("layout", ["engine", "swift"])
def test_a_package_generates_what_the_model_does(
    layout: str, packages: Callable[[str], Path], tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = russet.load(packages(layout))
    assert "slow and for checking only: Core ML is on macOS only" in caplog.text
    wanted = tiny_model.generate(PROMPT, max_tokens=8)
    reply = model.generate(PROMPT, max_tokens=8)
    assert len(reply.tokens) == 8 and reply.tokens == wanted.tokens and reply.text == wanted.text
    assert reply.exact and reply.strategy == "exact"
    assert (model.max_positions, model.vocab_size) == (CONTEXT, 259)
    assert "llama through Russet's MIL interpreter, slow and for checking only" in model.card


@pytest.mark.parametrize("layout", ["engine", "swift"])
def test_a_session_reuses_its_prefix(layout: str, packages: Callable[[str], Path], tiny_model: Any) -> None:
    talk, wanted = russet.load(packages(layout)).session(max_tokens=5), tiny_model.session(max_tokens=5)
    for said in ("Hello", "And again", "Once more"):
        reply, expected = talk.respond(said), wanted.respond(said)
        assert len(reply.tokens) == 5 and reply.tokens == expected.tokens
        assert reply.timings.cached_tokens == expected.timings.cached_tokens
    assert reply.timings.cached_tokens > 20
    again = [piece.text for piece in talk.regenerate()]
    assert "".join(again) == reply.text


def test_sampling_and_stopping_are_the_engines_own(packages: Callable[[str], Path]) -> None:
    model = russet.load(packages("engine"))
    drawn = [model.generate(PROMPT, max_tokens=6, temperature=0.8, top_p=0.9, seed=3).tokens for _ in range(2)]
    assert drawn[0] == drawn[1] != model.generate(PROMPT, max_tokens=6, temperature=0.8, seed=4).tokens
    text = model.generate(PROMPT, max_tokens=6).text
    assert model.generate(PROMPT, max_tokens=6, stop=(text[1],)).finish_reason == "stop"


def test_a_conversation_is_saved_and_goes_on(packages: Callable[[str], Path], tmp_path: Path, tiny_model: Any) -> None:
    model = russet.load(packages("engine"))
    talk = model.session(max_tokens=5)
    talk.respond("Hello")
    talk.save(tmp_path / "talk.russet")
    again = model.load_session(tmp_path / "talk.russet", max_tokens=5)
    assert again.messages == talk.messages
    assert again.respond("And again").tokens == talk.respond("And again").tokens
    with pytest.raises(SessionFileError, match="was saved with another model"):
        tiny_model.load_session(tmp_path / "talk.russet")


def test_the_context_is_the_packages(packages: Callable[[str], Path]) -> None:
    model = russet.load(packages("engine"))
    reply = model.generate(list(range(CONTEXT - 3)), max_tokens=50)
    assert len(reply.tokens) == 3 and reply.finish_reason == "length"
    with pytest.raises(PromptTooLongError, match=f"the model's context holds {CONTEXT}"):
        model.generate([1] * CONTEXT)


def test_strategies_that_look_inside_give_way_and_say_so(packages: Callable[[str], Path]) -> None:
    from russet.engine.prefill.strategies import parse

    reply = russet.load(packages("engine")).generate(PROMPT, max_tokens=2, prefill=parse("lazyllm"))
    assert reply.exact and reply.strategy == "exact" and reply.note


def test_the_command_chats(packages: Callable[[str], Path], tiny_model: Any) -> None:
    arguments = ["-m", str(packages("engine")), "-p", PROMPT, "--temp", "0", "--max-tokens", "8"]
    result = CliRunner().invoke(main, ["chat", *arguments])
    assert result.exit_code == 0
    assert result.stdout == tiny_model.generate(PROMPT, max_tokens=8).text + "\n"
    assert "slow and for checking only" in result.stderr
    refused = CliRunner().invoke(main, ["chat", *arguments, "--compute-units", "cpu"])
    assert refused.exit_code == 1 and "Core ML is on macOS only and a slow interpreter serves here" in refused.stderr


@pytest.mark.parametrize("layout", ["engine", "swift"])
def test_on_a_mac_core_ml_computes(
    layout: str, mac: type[StandIn], packages: Callable[[str], Path], tiny_model: Any
) -> None:
    model = russet.load(packages(layout), compute_units="cpu-ne")
    reply = model.generate(PROMPT, max_tokens=8)
    assert reply.tokens == tiny_model.generate(PROMPT, max_tokens=8).tokens
    assert "through Core ML on cpu-ne" in model.card
    functions = {"engine": {"prefill", "decode"}, "swift": {None}}[layout]
    assert {function for _, _, function in mac.made} == functions
    assert {units for _, units, _ in mac.made} == {ct.ComputeUnit.CPU_AND_NE}


@pytest.mark.parametrize(("asked", "got"), [(None, "CPU_AND_GPU"), ("all", "ALL"), ("cpu", "CPU_ONLY")])
def test_compute_units(asked: str | None, got: str, mac: type[StandIn], packages: Callable[[str], Path]) -> None:
    russet.load(packages("engine"), compute_units=asked).generate([1, 2], max_tokens=1)
    assert {units for _, units, _ in mac.made} == {getattr(ct.ComputeUnit, got)}


def test_one_state_serves_both_functions_and_each_conversation_has_its_own(
    mac: type[StandIn], packages: Callable[[str], Path], tiny_model: Any
) -> None:
    model = russet.load(packages("engine"))
    one, two = model.session(max_tokens=4), model.session(max_tokens=4)
    one.respond("Hello")
    two.respond("Something else")
    wanted = tiny_model.session(max_tokens=4)
    wanted.respond("Hello")
    assert one.respond("And again").tokens == wanted.respond("And again").tokens
    assert len(mac.made) == 2


def test_packages_of_others_are_refused(packages: Callable[[str], Path], tmp_path: Path) -> None:
    bare = Path(shutil.copytree(packages("engine"), tmp_path / "bare.mlpackage"))
    shutil.rmtree(bare / "Data" / "russet")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json and tokenizer"):
        russet.load(bare)
    manifest = json.loads((bare / "Manifest.json").read_text())
    assert any(item["name"] == "description" for item in manifest["itemInfoEntries"].values())
    (bare / "Manifest.json").unlink()
    with pytest.raises(CheckpointError, match="is not a Core ML package"):
        russet.load(bare)
    unlabelled = Path(shutil.copytree(packages("engine"), tmp_path / "unlabelled.mlpackage"))
    model = unlabelled / "Data/com.apple.CoreML/model.mlmodel"
    model.write_bytes(model.read_bytes().replace(b"russet.layout", b"russet.layoux"))
    with pytest.raises(CheckpointError, match="does not say its layout"):
        russet.load(unlabelled)


def test_a_package_takes_no_dtype(packages: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOptionError, match="computes as it was converted"):
        russet.load(packages("engine"), dtype="float32")


def test_coremltools_opens_what_was_written(packages: Callable[[str], Path]) -> None:
    """The item with the tokenizer does not keep it from the package."""
    model = ct.models.MLModel(str(packages("engine")), skip_model_load=True)
    assert model.user_defined_metadata["russet.family"] == "llama"
    assert [function.name for function in model.get_spec().description.functions] == ["prefill", "decode"]


def test_decoding_is_not_disturbed_by_what_a_chunk_wrote_behind_it(packages: Callable[[str], Path]) -> None:
    decoder = interpreted(packages("engine"), "float32")
    assert isinstance(decoder, CoreMLDecoder)
    state = decoder.make_state()
    decoder.run(np.arange(5, dtype=np.int32), 0, state)
    after_chunk = decoder.run(np.array([7], np.int32), 5, state)
    fresh = decoder.make_state()
    for i in range(5):
        decoder.run(np.array([i], np.int32), i, fresh)
    np.testing.assert_allclose(after_chunk, decoder.run(np.array([7], np.int32), 5, fresh), atol=1e-5)
