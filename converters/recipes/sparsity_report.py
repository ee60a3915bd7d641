"""How many zeros a model's linear maps read, layer by layer and over windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from russet.converters.recipes.base import Batch
from russet.converters.recipes.forward import hidden_rows
from russet.models.decoder import Decoder, Probe

WINDOWS = (1, 2, 4, 8, 16, 32)


class Zeros(Probe):
    """Counts zeros in the inputs of gate, up and down, and neurons that no token of a window uses."""

    def __init__(self, shifts: list[float]) -> None:
        self.shifts = shifts
        self.inputs: list[mx.array] = []
        self.unused: list[mx.array] = []

    def ffn(self, layer: int, x: mx.array, gate: mx.array, up: mx.array) -> None:
        batch, length, width = gate.shape
        active = gate > self.shifts[layer]
        self.inputs.append((x == 0).astype(mx.float32).mean())
        shares = []
        for window in WINDOWS:
            whole = length // window * window
            used = active[:, :whole].reshape(batch, -1, window, width).any(axis=2)
            shares.append(1 - used.astype(mx.float32).mean())
        self.unused.append(mx.stack(shares))


def measure_sparsity(decoder: Decoder, batches: Sequence[Batch], progress: Callable[[], None]) -> dict[str, Any]:
    """Shares of zeros, means over the batches.

    `layers` has one entry a layer with the inputs of `gate_up` and of `down`; `aggregated` is the share of neurons that
    no token of a window of so many consecutive ones uses, mean of all layers. Windows need texts of 32 tokens.
    """
    shifts = [layer.relu_shift for layer in decoder.config.layers]
    inputs, unused = [], []
    for batch in batches:
        probe = Zeros(shifts)
        rows = hidden_rows(decoder, batch.tokens, probe=probe)
        inputs.append(mx.stack(probe.inputs))
        unused.append(mx.stack(probe.unused))
        mx.eval(rows.final, inputs, unused)
        progress()
    gate_up, windows = mx.stack(inputs).mean(0).tolist(), mx.stack(unused).mean(0)
    down, aggregated = windows[:, 0].tolist(), windows.mean(0).tolist()
    assert isinstance(gate_up, list) and isinstance(down, list) and isinstance(aggregated, list)
    return {
        "gate_up": sum(gate_up) / len(gate_up),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "down": sum(down) / len(down),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "layers": [{"gate_up": a, "down": b} for a, b in zip(gate_up, down, strict=True)],
        "aggregated": {str(window): share for window, share in zip(WINDOWS, aggregated, strict=True)},
    }
