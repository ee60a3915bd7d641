"""Cold start: from the start of a process to its first token and to its end, one prompt, one token.

The files are in the system's cache after the run that is not counted; it is the process that is cold, not the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from russet.bench.base import OURS
from russet.bench.decode import Listener
from russet.bench.stats import Ratio, ratio
from russet.engine.errors import PeerError
from russet.engine.timing import now

PROMPT = "Why is the sky blue?"


@dataclass(frozen=True, slots=True)
class ColdRun:
    """Seconds from the start of a process to the first byte on its standard output, and to its end."""

    first_output_s: float
    end_s: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Program:
    """A command line that answers one prompt with one token and exits."""

    name: str
    arguments: tuple[str, ...]


def russet_program(folder: Path, dtype: str | None) -> Program:
    wanted = ("--dtype", dtype) if dtype else ()
    arguments = ("-m", "russet", "generate", "-m", str(folder), "-p", PROMPT, "--max-tokens", "1", *wanted)
    return Program(OURS, (sys.executable, *arguments))


def mlx_lm_program(folder: Path, dtype: str | None, *, level: bool) -> Program:
    """`mlx_lm generate`; with `level`, with Russet's BLAS and number format."""
    options = ("--model", str(folder), "--prompt", PROMPT, "--max-tokens", "1")
    if not level:
        return Program("mlx-lm", (sys.executable, "-m", "mlx_lm", "generate", *options))
    return Program("mlx-lm", (sys.executable, "-m", "russet.bench.level_mlx_lm", dtype or "", *options))


def run_cold(
    programs: Sequence[Program], repeat: int, results: dict[str, list[ColdRun]], listen: Listener = lambda _: None
) -> None:
    """Start every program `repeat` times, the order reversed every other round, after one run that is not counted."""
    for program in programs:
        listen(f"cold start, {program.name}, warm-up")
        time_process(program)
        results[program.name] = []
    for number in range(repeat):
        for program in programs if number % 2 == 0 else reversed(programs):
            listen(f"cold start, {program.name}, {number + 1} of {repeat}")
            results[program.name].append(time_process(program))


def time_process(program: Program) -> ColdRun:
    """Run a program; PeerError, with what it wrote last, where it fails or writes nothing.

    Standard output is a pipe, which Python buffers: what comes first comes when the program flushes its first token.
    """
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with tempfile.TemporaryFile() as errors:
        started = now()
        with subprocess.Popen(program.arguments, stdout=subprocess.PIPE, stderr=errors, env=surroundings) as process:
            assert process.stdout is not None
            first = os.read(process.stdout.fileno(), 1)
            first_output = now() - started
            process.stdout.read()
            process.wait()
            end = now() - started
        if process.returncode or not first:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise PeerError(f"{' '.join(program.arguments)} failed with exit code {process.returncode} ({lines[-1]}).")
    return ColdRun(first_output, end)


def cold_ratios(runs: dict[str, list[ColdRun]], peer: str) -> dict[str, Ratio]:
    """How many times as fast as a peer's process ours is, to the "first_output" and to the "end"."""
    if peer == OURS or OURS not in runs:
        return {}
    ours, theirs = runs[OURS], runs[peer]
    return {
        "first_output": ratio([run.first_output_s for run in theirs], [run.first_output_s for run in ours]),
        "end": ratio([run.end_s for run in theirs], [run.end_s for run in ours]),
    }
