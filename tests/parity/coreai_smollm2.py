"""SmolLM2 converted whole for Core AI, and its greedy tokens in Apple's runtime beside the committed ones.

    python tests/parity/coreai_smollm2.py              20 tokens after the first prompt of tests/golden/prompts.txt
    python tests/parity/coreai_smollm2.py --table      the kinds of weights as well: size, seconds, memory

Needs the default model in the cache (`russet chat` puts it there) and the extra coreai; says so and exits with 0 where
one of them is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from coreml import COUNT, MODEL, committed, convert

from russet.engine.paths import models_dir
from russet.engine.storage import folder_bytes

KINDS = ("float32", "float16", "int8", "int4", "stored")


def greedy(package: Path) -> list[int]:
    """The reply of `COUNT` tokens, in calls of the whole prompt and of single tokens."""
    from russet.models.runtimes.coreai import load

    prompt, _ = committed()
    decoder = load(package, None)
    cache, rows, tokens = decoder.new_cache(), list(prompt), []
    for _ in range(COUNT):
        logits = decoder.extend(mx.array([rows]), cache)
        assert logits is not None
        rows = [int(np.array(logits[0, -1]).argmax())]
        tokens += rows
    decoder.close()
    return tokens


def compare() -> bool:
    """Whether a float32 package gives the committed tokens in Apple's runtime."""
    folder = models_dir() / MODEL
    if not folder.is_dir() or importlib.util.find_spec("coreai") is None:
        print(f"{MODEL} is not in {models_dir()}, or coreai-core is not installed: Core AI is not compared")
        return True
    print(f"{MODEL}: converting to Core AI and running it in Apple's runtime, a minute on a CPU", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package"
        convert(folder, package, "float32", "coreai")
        same = greedy(package) == committed()[1]
    print(f"{MODEL}: {COUNT} greedy tokens equal: {'yes' if same else 'NO'}")
    return same


def table() -> None:
    """One Markdown line a kind of weights."""
    print("| weights | package | conversion | peak memory |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            package = Path(scratch) / kind
            seconds, peak = convert(models_dir() / MODEL, package, kind, "coreai")
            nbytes = folder_bytes(package)
            print(f"| {kind} | {nbytes / 1e6:.0f} MB | {seconds:.1f} s | {peak / 1e9:.2f} GB |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run SmolLM2 converted for Core AI.")
    parser.add_argument("--table", action="store_true", help="measure every kind of weights")
    if parser.parse_args().table:
        table()
        return 0
    return 0 if compare() else 1


if __name__ == "__main__":
    sys.exit(main())
