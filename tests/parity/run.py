"""Compare the committed golden folders with the libraries they come from, or write them anew.

    python tests/parity/run.py            recompute every golden's logits and fail on a difference; then smollm2.py
    python tests/parity/run.py NAME ...   only these folders
    python tests/parity/run.py --write    draw the tiny checkpoints and write tests/golden/ (smollm2.py writes its own)

Runs where torch, transformers, tamm and mlx-lm are installed (`make parity`); the suite needs only what is committed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import coreai_smollm2
import coreml
import golden
import numpy as np
import reference_mlx_lm
import reference_tamm
import reference_transformers
import smollm2
from safetensors.torch import save_file as save_torch
from variants import LENGTH, VARIANTS, Config, Variant
from weights import random_tokens, random_weights

SAME = 2e-5
"""Largest difference of a reference from itself: across CPUs, and between one pass and its own cached steps."""
STEPS = (LENGTH, 5, 1)

Logits = Callable[[np.ndarray, int], np.ndarray]


def reference(variant: Variant, folder: Path, config: Config) -> Logits:
    """The committed folder, loaded by the library that owns the architecture."""
    if variant.reference == "transformers":
        return reference_transformers.Model(folder, config).logits
    if variant.reference == "mlx_lm":
        return reference_mlx_lm.Model(folder).logits
    return reference_tamm.Model(folder, config).logits


def write(variant: Variant) -> None:
    """Draw a checkpoint and put down its folder with the reference's logits."""
    folder = golden.ROOT / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    config = variant.config
    tokens = random_tokens(config["vocab_size"], LENGTH, variant.seed)
    golden.write_config(folder, config)
    for spelling, other in variant.spellings.items():
        golden.write_config(folder, other, spelling)
    if variant.reference == "transformers":
        golden.write_config(folder, reference_transformers.rewritten(config), "transformers5")
        centre = reference_transformers.norm_centre(config)
        weights = random_weights(reference_transformers.shapes(config), variant.seed, centre)
    elif variant.reference == "mlx_lm":
        weights = random_weights(reference_mlx_lm.shapes(config), variant.seed)
    else:
        drawn = random_weights(reference_tamm.shapes(config), variant.seed)
        state = reference_tamm.calibrated(config, drawn, tokens)
        save_torch(state, folder / "tamm.safetensors")
        weights = reference_tamm.renamed(state)
    golden.write_weights(folder, weights)
    golden.write_expected(folder, tokens, reference(variant, folder, config)(tokens, LENGTH))


def check(variant: Variant) -> float:
    """The largest difference between committed logits and the reference's, over spellings and ways of feeding it."""
    folder = golden.ROOT / variant.name
    tokens, expected = golden.read_expected(folder)
    worst = 0.0
    for config in golden.spellings(folder).values():
        logits = reference(variant, folder, config)
        for step in STEPS:
            worst = max(worst, float(np.abs(logits(tokens, step) - expected).max()))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the golden folders with the libraries they come from.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare only (the default)")
    mode.add_argument("--write", action="store_true", help="write the golden folders before checking them")
    parser.add_argument("variants", nargs="*", help="names of variants (all)")
    options = parser.parse_args()
    if unknown := set(options.variants) - {variant.name for variant in VARIANTS}:
        parser.error(f"no such golden: {', '.join(sorted(unknown))}")
    chosen = [variant for variant in VARIANTS if not options.variants or variant.name in options.variants]
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tamm", "mlx", "mlx-lm")))
    failed = 0
    for variant in chosen:
        if options.write:
            write(variant)
        worst = check(variant)
        failed += worst > SAME
        print(f"{variant.name:16} {variant.reference:13} {worst:.1e}{'' if worst <= SAME else '  DIFFERS'}")
    if not options.variants:
        failed += not smollm2.compare()
        failed += not coreml.compare()
        failed += not coreai_smollm2.compare()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
