"""What the roofline predicts for three well-known models of 4 bits on every part, on one page."""

from __future__ import annotations

from russet.bench.chips import CHIPS
from russet.bench.drawing import Table
from russet.bench.roofline import Workload, predict, shape_workload

MODELS = {"SmolLM2-135M": "smollm2-135m", "3B": "llama-3b", "Llama-2-7B": "llama-2-7b"}
BITS = 4
PROMPT = 2048


def workloads() -> dict[str, Workload]:
    return {name: shape_workload(shape, BITS) for name, shape in MODELS.items()}


def table() -> Table:
    """A row a part: time to the first token of a prompt of `PROMPT` tokens, and decoding after it."""
    works = workloads()
    header = ("part", *(f"{name}: {what}" for name in works for what in ("TTFT s", "decode tok/s")))
    rows = []
    for chip in CHIPS:
        found = [predict(work, chip, PROMPT) for work in works.values()]
        rows.append((chip.name, *(cell for one in found for cell in (f"{one.ttft_s:.2g}", f"{one.decode_tps:.0f}"))))
    return Table(f"Predicted, not measured: {BITS} bits, a prompt of {PROMPT} tokens", header, tuple(rows))
