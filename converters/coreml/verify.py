"""Run what was written through the interpreter, and hold it against the model that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from russet.converters.coreml.plan import Plan
from russet.converters.model_tensors import ModelTensors
from russet.engine.errors import WeightsError
from russet.models.runtimes.coreml import interpreted

MAX_PARAMETERS = 500_000_000
"""Models above it are not run, for the interpreter holds weights in float32 and takes seconds a token."""
SAME_WEIGHTS = ("float16", "stored")
"""The kinds that a package's logits can be expected to be the model's with."""
ROUNDING = 0.1
"""What float16 may move logits by, as a share of the largest: 0.004 in SmolLM2-135M, 0.02 in tiny random models."""


def check_package(folder: Path, model: ModelTensors, plan: Plan) -> None:
    """Two tokens in one call and one by one, rounded as on a device, so that overflow is found.

    Raises WeightsError unless all logits are finite, both ways agree, and they are those of the model on MLX where the
    weights are the same.
    """
    if model.parameters > MAX_PARAMETERS:
        return
    tokens = np.array([0, min(1, model.config.vocab_size - 1)], np.int32)
    together, singly = _package_logits(folder, tokens, plan)
    if not all(np.isfinite(logits).all() for logits in (*together, *singly)):
        raise WeightsError(
            "The package answers with numbers that are not finite: the model's activations do not fit in float16, "
            "which Core ML computes in."
        )
    if together and _difference(together[-1], singly[-1]) > ROUNDING:
        raise WeightsError("The package's prefill and decode functions disagree; this is a fault in Russet.")
    if plan.weights in SAME_WEIGHTS and (share := _difference(singly[-1], _model_logits(model, tokens))) > ROUNDING:
        raise WeightsError(
            f"The package's logits differ from the model's by {share:.0%} of the largest: the model's activations do "
            "not fit in float16, or this is a fault in Russet."
        )


def _package_logits(folder: Path, tokens: np.ndarray, plan: Plan) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The last token's logits of one call, where a call takes two tokens, and each token's of calls of one."""
    decoder = interpreted(folder)
    together = [decoder.run(tokens, 0, decoder.make_state())] if plan.chunk > 1 else []
    state = decoder.make_state()
    singly = [decoder.run(tokens[i : i + 1], i, state) for i in range(len(tokens))]
    return together, singly


def _model_logits(model: ModelTensors, tokens: np.ndarray) -> np.ndarray:
    import mlx.core as mx

    from russet.models.loading import load_decoder

    decoder = load_decoder(model.folder, "float32")
    logits = decoder.extend(mx.array(tokens)[None], decoder.new_cache())
    return np.array(logits)[0, -1]


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest number."""
    wide = found.astype(np.float32), wanted.astype(np.float32)
    return float(np.abs(wide[0] - wide[1]).max() / max(1.0, np.abs(wide[1]).max()))
