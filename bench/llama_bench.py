"""llama.cpp as a contender, through its own `llama-bench`, with a GGUF file of the same model.

llama-bench leaves tokenising and sampling out and feeds tokens of its own, so it has a prefill time and no time to
first token, and its tokens are not ours. Every run is a process of its own with one repetition, after its warm-up.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.bench.peers import LLAMA_BENCH, LLAMA_CPP
from russet.bench.prompts import Prompt
from russet.bench.ttft_run import Run
from russet.engine.errors import PeerError


@dataclass(frozen=True, slots=True)
class Tested:
    """One object of llama-bench's JSON: tokens of prompt and reply, of the context before them, and all repetitions."""

    prompt: int
    generated: int
    depth: int
    seconds: tuple[float, ...]
    setting: str


def parse(text: str) -> list[Tested]:
    """What `llama-bench -o json` prints. Raises PeerError where it is something else."""
    try:
        return [_tested(test) for test in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(
            f"{LLAMA_BENCH} printed something other than the JSON of its README ({error!r}); update llama.cpp, or "
            f"leave out --peer {LLAMA_CPP}."
        ) from error


def _tested(test: dict[str, Any]) -> Tested:
    where = test["gpu_info"] or test["cpu_info"]
    setting = f"{test['model_type']}, {test['backends']} on {where}, build {test['build_number']}"
    samples = tuple(int(sample) / 1e9 for sample in test["samples_ns"])
    if not samples or min(samples) <= 0:
        raise ValueError("no samples")
    return Tested(int(test["n_prompt"]), int(test["n_gen"]), int(test.get("n_depth", 0)), samples, setting)


class LlamaBench:
    """A GGUF file in `llama-bench`."""

    engine = name = LLAMA_CPP
    prefill = "exact"
    weights_bytes = None

    def __init__(self, gguf: Path) -> None:
        """A prompt of one token finds out what it computes with, and whether it takes the file."""
        self._gguf = gguf
        probe = self._only("-p", "1", "-n", "0")
        self.setting = f"{probe.setting}; in processes of its own, without tokenising and sampling"

    def run(self, prompt: Prompt, generate: int) -> Run:
        """Prefill as many tokens as the prompt has; then, after another prefill of them, time the reply."""
        length = len(prompt.tokens)
        prefilled = self._only("-p", str(length), "-n", "0")
        rate = None
        if generate > 1:
            # It does not time the reply's first token apart: n tokens count as n intervals.
            decoded = self._only("-p", "0", "-n", str(generate), "-d", str(length))
            rate = generate / decoded.seconds[0]
        seconds = prefilled.seconds[0]
        return Run(None, seconds, length / seconds, rate, None)

    def _only(self, *arguments: str) -> Tested:
        command = [LLAMA_BENCH, "-m", str(self._gguf), *arguments, "-r", "1", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
            raise PeerError(f"{' '.join(command)} failed with exit code {done.returncode} ({lines[-1]}).")
        found = parse(done.stdout)
        if len(found) != 1:
            raise PeerError(f"{' '.join(command)} made {len(found)} tests; one was expected: update llama.cpp.")
        return found[0]
