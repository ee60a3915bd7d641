"""SmolLM2 converted whole for Core ML, and its greedy tokens through the interpreter beside the committed ones.

    python tests/parity/coreml.py              20 tokens after the first prompt of tests/golden/prompts.txt
    python tests/parity/coreml.py --table      the kinds of weights as well: size, seconds, memory, agreement

Needs the default model in the cache (`russet chat` puts it there) and the extra coreml; says so and exits with 0 where
one of them is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from golden import ROOT

from russet.engine.paths import models_dir
from russet.engine.storage import folder_bytes
from russet.engine.timing import now

MODEL = "smollm2-135m"
COUNT = 20
KINDS = ("float16", "int8", "int4", "palette4", "palette2", "stored")


def convert(folder: Path, package: Path, weights: str, to: str = "coreml") -> tuple[float, float]:
    """Convert in a process of its own: seconds from start to end, and its peak memory in bytes."""
    command = [sys.executable, "-m", "russet", "convert", str(folder), str(package), "--to", to]
    started = now()
    process = subprocess.Popen([*command, "--weights", weights], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return now() - started, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)


def greedy(package: Path, prompt: Sequence[int], precision: Any) -> list[int]:
    from russet.models.runtimes.coreml import interpreted

    decoder = interpreted(package, precision)
    cache, rows, tokens = decoder.new_cache(), list(prompt), []
    for _ in range(COUNT):
        logits = decoder.extend(mx.array([rows]), cache)
        assert logits is not None
        rows = [int(np.array(logits[0, -1]).argmax())]
        tokens += rows
    return tokens


def compare() -> bool:
    """Whether a float16 package gives the committed tokens, evaluated in float32 and rounded to float16."""
    folder = models_dir() / MODEL
    if not folder.is_dir() or importlib.util.find_spec("coremltools") is None:
        print(f"{MODEL} is not in {models_dir()}, or coremltools is not installed: Core ML is not compared")
        return True
    prompt, wanted = committed()
    print(f"{MODEL}: converting to Core ML and running it in the interpreter, a minute on a CPU", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "model.mlpackage"
        convert(folder, package, "float16")
        exact, rounded = (greedy(package, prompt, precision) == wanted for precision in ("float32", "declared"))
    print(f"{MODEL}: {COUNT} greedy tokens equal: in float32 {_word(exact)}, rounded to float16 {_word(rounded)}")
    return exact and rounded


def table() -> None:
    """One Markdown line a kind of weights."""
    folder = models_dir() / MODEL
    prompt, wanted = committed()
    print(
        "| weights | package | conversion | peak memory | greedy tokens equal to the engine's |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            package = Path(scratch) / f"{kind}.mlpackage"
            seconds, peak = convert(folder, package, kind)
            tokens = greedy(package, prompt, "float32")
            same = next((i for i in range(COUNT) if tokens[i] != wanted[i]), COUNT)
            equal = f"all {COUNT}" if same == COUNT else f"the first {same}"
            print(
                f"| {kind} | {folder_bytes(package) / 1e6:.0f} MB | {seconds:.1f} s | {peak / 1e9:.2f} GB | {equal} |",
                flush=True,
            )
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def committed() -> tuple[list[int], list[int]]:
    """The first prompt's tokens, and the first tokens of its reply, by mlx-lm in float32."""
    reply = json.loads((ROOT / "smollm2_greedy.json").read_text())["replies"][0]
    return reply["prompt_tokens"], reply["tokens"][:COUNT]


def _word(same: bool) -> str:
    return "yes" if same else "NO"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run SmolLM2 converted for Core ML.")
    parser.add_argument("--table", action="store_true", help="measure every kind of weights")
    if parser.parse_args().table:
        table()
        return 0
    return 0 if compare() else 1


if __name__ == "__main__":
    sys.exit(main())
