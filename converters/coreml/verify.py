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


def check_package(folder: Path, model: ModelTensors, plan: Plan) -> None:
    """Two tokens in one call and one by one: WeightsError unless all logits are finite and both ways agree.

    Numbers are rounded as on a device, so that overflow is found.
    """
    if model.parameters > MAX_PARAMETERS:
        return
    decoder = interpreted(folder)
    tokens = np.array([0, min(1, model.config.vocab_size - 1)], np.int32)
    together = decoder.run(tokens[: min(2, plan.chunk)], 0, decoder.make_state()).astype(np.float32)
    state = decoder.make_state()
    singly = [decoder.run(tokens[i : i + 1], i, state).astype(np.float32) for i in range(2)]
    if not all(np.isfinite(logits).all() for logits in (together, *singly)):
        raise WeightsError(
            "The package answers with numbers that are not finite: the model's activations do not fit in float16, "
            "which Core ML computes in."
        )
    wanted = singly[1] if plan.chunk > 1 else singly[0]
    if np.abs(together - wanted).max() > 0.05 * max(1.0, float(np.abs(wanted).max())):
        raise WeightsError("The package's prefill and decode functions disagree; this is a fault in Russet.")
