"""Predict decoding and time to first token on Apple's parts from bytes, arithmetic and launches. Nothing is measured.

    rate    = READ_SHARE bandwidth
    step    = max(weight bytes / rate, weights CYCLES / issued) + cached bytes / rate + launches LAUNCH_S
    prefill = max(operations / matrix rate, weight bytes / rate) + launches LAUNCH_S

Everything else is left out: the host's work, what a busy memory controller or heat costs, and that large GPUs do not
fill up on small products. roofline_check.py holds the model against published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from russet.bench.chips import CHIPS, Chip
from russet.bench.drawing import Table
from russet.bench.work import attention_operations, cached_bytes, packed_bytes, prefill_weights, step_weights
from russet.models.config import DecoderConfig

SCHEMA = "russet-bench-roofline/1"

READ_SHARE = 0.88
"""Of peak bandwidth, what MLX's 4-bit matrix-vector product reads: 0.88 to 0.91 on M4 Pro, 0.94 on M3 Max (MLX issue
3852)."""

LAUNCH_S = 5.2e-6
"""GPU time that one more launch in a chain costs on Apple silicon (ferrox issue 149)."""

CYCLES = {2: 4.0, 4: 4.0, 8: 4.0, 16: 2.0}
"""Instructions a weight in kernels/src/matvec.h: shift, mask, or, multiply-add; at 16 bits widen and multiply-add."""

LAYER_LAUNCHES, OTHER_LAUNCHES = 5, 2
"""Of the fused step (models/fused.py)."""

PREFILL_LAUNCHES = 15
"""A layer and chunk, in MLX's operations."""

CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Workload:
    """A model: its shape, bits a weight, weights a scale, and whether it does without offsets (balanced)."""

    name: str
    config: DecoderConfig
    bits: int
    group: int = 64
    balanced: bool = False

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights that one token is multiplied with."""
        return packed_bytes(step_weights(self.config), self.bits, self.group, self.balanced)

    @property
    def launches(self) -> int:
        return LAYER_LAUNCHES * len(self.config.layers) + OTHER_LAUNCHES


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says for one part and context; `bound` names the largest share of a step."""

    chip: str
    context: int
    decode_tps: float
    ttft_s: float
    bound: str


def step_seconds(chip: Chip, weights: int, size: float, cycles: float, cached: int, launches: int) -> dict[str, float]:
    """A step's parts in seconds: "weights" are read, or "arithmetic" takes longer; "cache" and "launches" add up."""
    rate = READ_SHARE * chip.bandwidth
    read, computed = size / rate, weights * cycles / chip.issued
    name, longest = ("weights", read) if read >= computed else ("arithmetic", computed)
    return {name: longest, "cache": cached / rate, "launches": launches * LAUNCH_S}


def prefill_seconds(chip: Chip, operations: float, size: float, launches: int) -> float:
    return max(operations / chip.prefill_operations, size / (READ_SHARE * chip.bandwidth)) + launches * LAUNCH_S


def predict(work: Workload, chip: Chip, context: int) -> Prediction:
    """Decoding after `context` tokens, and the time to the first token of a prompt as long."""
    config = work.config
    number_bytes = 1 if config.quantized_kv else 2
    parts = step_seconds(
        chip,
        step_weights(config),
        work.weight_bytes,
        CYCLES[work.bits],
        cached_bytes(config, context, number_bytes),
        work.launches,
    )
    chunks, layers = -(-context // CHUNK), len(config.layers)
    operations = 2.0 * prefill_weights(config) * context + attention_operations(config, context)
    ttft = prefill_seconds(chip, operations, work.weight_bytes * chunks, PREFILL_LAUNCHES * layers * chunks)
    return Prediction(chip.name, context, 1 / sum(parts.values()), ttft, max(parts, key=lambda name: parts[name]))


def shape_workload(shape: str, bits: int) -> Workload:
    """One of `SHAPES`; 2-bit weights are balanced."""
    from russet.bench.shape_configs import SHAPES
    from russet.models.families import read_decoder

    return Workload(f"{shape} of {bits} bits", read_decoder(SHAPES[shape]), bits, balanced=bits == 2)


def folder_workload(name: str, folder: Path) -> Workload:
    """A model folder, by its config.json alone. Raises UnsupportedModelError for other architectures and bits."""
    from russet.engine.errors import UnsupportedModelError
    from russet.models.config_file import read_config
    from russet.models.families import read_decoder

    raw = read_config(folder)
    packing = raw.get("quantization") or {}
    bits = packing.get("bits", 16)
    if bits not in CYCLES:
        raise UnsupportedModelError(f"{name} has weights of {bits} bits; predictions exist for 2, 4, 8 and 16.")
    return Workload(f"{name}, {bits} bits", read_decoder(raw), bits, packing.get("group_size", 64))


def predictions(work: Workload, contexts: Sequence[int]) -> list[Prediction]:
    return [predict(work, chip, context) for chip in CHIPS for context in contexts]


def to_dict(work: Workload, found: Sequence[Prediction]) -> dict[str, Any]:
    """For --json."""
    constants = {"read_share": READ_SHARE, "launch_s": LAUNCH_S, "cycles_a_weight": CYCLES[work.bits]}
    return {
        "schema": SCHEMA,
        "predicted": True,
        "model": work.name,
        "weight_bytes": work.weight_bytes,
        "launches": work.launches,
        "constants": constants,
        "predictions": [asdict(prediction) for prediction in found],
    }


def table(work: Workload, found: Sequence[Prediction]) -> Table:
    """A row a part and context."""
    header = ("part", "context", "predicted decode tok/s", "bound by", "predicted time to first token s")
    rows = [(one.chip, str(one.context), f"{one.decode_tps:.1f}", one.bound, f"{one.ttft_s:.3g}") for one in found]
    return Table(f"Predicted, not measured: {work.name}", header, tuple(rows))


def notes(work: Workload) -> list[str]:
    return [
        f"Predicted from {work.weight_bytes / 1e9:.2f} GB of weights and {work.launches} launches a token: "
        f"{READ_SHARE:.0%} of peak bandwidth, {LAUNCH_S * 1e6:.1f} us a launch, {CYCLES[work.bits]:.0f} instructions a "
        "weight.",
        "`russet bench roofline --check` holds the model against published figures.",
    ]
