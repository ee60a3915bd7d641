"""llama-bench's JSON, as its README documents it, and a stand-in program that prints it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from russet.bench.llama_bench import LlamaBench, parse
from russet.bench.peers import require_peer
from russet.bench.prompts import Prompt
from russet.engine.errors import MissingDependencyError, PeerError

DOCUMENTED = {
    "build_commit": "8cf427ff",
    "build_number": 5163,
    "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "gpu_info": "NVIDIA GeForce RTX 4080",
    "backends": "CUDA",
    "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "model_type": "qwen2 7B Q4_K - Medium",
    "model_size": 4677120000,
    "model_n_params": 7615616512,
    "n_batch": 2048,
    "n_threads": 8,
    "type_k": "f16",
    "n_gpu_layers": -1,
    "use_mmap": True,
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2025-04-24T11:58:50Z",
    "avg_ns": 72135640,
    "stddev_ns": 1453752,
    "avg_ts": 7100.002165,
    "stddev_ts": 140.34152,
    "samples_ns": [74601900, 71632900, 71745200, 71952700, 70745500],
    "samples_ts": [6863.1, 7147.55, 7136.37, 7115.79, 7237.21],
}

PROGRAM = """#!{python}
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "broken" in given["-m"]:
    sys.exit("error: failed to load model")
prompt, generated, depth = int(given["-p"]), int(given["-n"]), int(given.get("-d", 0))
assert given["-r"] == "1" and given["-o"] == "json"
seconds = prompt / 1000 + generated / 50
test = dict({documented!r}, n_prompt=prompt, n_gen=generated, n_depth=depth, samples_ns=[round(seconds * 1e9)])
print(json.dumps([test]))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `llama-bench` on the PATH that prefills 1000 tokens a second and decodes 50."""
    file = tmp_path / "bin" / "llama-bench"
    file.parent.mkdir()
    file.write_text(PROGRAM.format(python=sys.executable, documented=DOCUMENTED))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent))
    return file


def test_the_documented_json_is_read() -> None:
    decoding = {**DOCUMENTED, "n_prompt": 0, "n_gen": 128, "n_depth": 512, "samples_ns": [1075361300]}
    prefilled, decoded = parse(json.dumps([DOCUMENTED, decoding]))
    assert (prefilled.prompt, prefilled.generated, prefilled.depth) == (512, 0, 0)
    assert prefilled.seconds[0] == 0.0746019 and len(prefilled.seconds) == 5
    assert (decoded.prompt, decoded.generated, decoded.depth) == (0, 128, 512)
    assert prefilled.setting == "qwen2 7B Q4_K - Medium, CUDA on NVIDIA GeForce RTX 4080, build 5163"


@pytest.mark.parametrize("text", ["", "{}x", '[{"n_prompt": 1}]', json.dumps([{**DOCUMENTED, "samples_ns": []}])])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(PeerError, match="something other than the JSON of its README"):
        parse(text)


@pytest.mark.usefixtures("program")
def test_a_run_has_prefill_and_decoding_and_no_time_to_first_token() -> None:
    require_peer("llama.cpp")
    contender = LlamaBench(Path("model.gguf"))
    run = contender.run(Prompt("", [1] * 512), 128)
    assert (run.ttft_s, run.prefill_s, run.peak_memory_bytes) == (None, 0.512, None)
    assert (run.prefill_tps, run.decode_tps) == (pytest.approx(1000), pytest.approx(50))
    assert "Q4_K - Medium" in contender.setting and "without tokenising" in contender.setting
    assert contender.run(Prompt("", [1] * 8), 1).decode_tps is None


@pytest.mark.usefixtures("program")
def test_a_file_that_it_does_not_take_is_told_at_once() -> None:
    with pytest.raises(PeerError, match=r"exit code 1 \(error: failed to load model\)"):
        LlamaBench(Path("broken.gguf"))


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"llama-bench of llama\.cpp is not on the PATH"):
        require_peer("llama.cpp")
