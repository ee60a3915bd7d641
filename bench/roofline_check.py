"""The roofline model held against what llama.cpp published for Llama-2-7B in Q4_0 on the same parts.

Figures: https://github.com/ggml-org/llama.cpp/discussions/4167, prompts of 512 tokens and 128 tokens generated. Prefill
is in tokens a second. Decoding is known as the share of peak bandwidth at which 3.82 GB of weights were read: of four
parts alone, of the others as the range over their class.
"""

from __future__ import annotations

from dataclasses import dataclass

from russet.bench.chips import CHIPS
from russet.bench.drawing import Table
from russet.bench.roofline import prefill_seconds, step_seconds
from russet.bench.shape_configs import SHAPES
from russet.bench.work import attention_operations, cached_bytes, layer_weights, step_weights
from russet.models.families import read_decoder

PREFILL = {
    "M1": 118,
    "M2": 180,
    "M3": 187,
    "M4": 221,
    "M4 Pro": 440,
    "M1 Max": 530,
    "M3 Max": 760,
    "M4 Max": 886,
    "M2 Ultra": 1238,
    "M5 Pro": 1621,
}
_PRO, _MAX, _ULTRA = (0.70, 0.78), (0.58, 0.63), (0.42, 0.45)
DECODE = {
    "M1": (0.79, 0.79),
    "M2": (0.84, 0.84),
    "M4": (0.77, 0.77),
    "M5 Pro": (0.83, 0.83),
    **dict.fromkeys(("M1 Pro", "M2 Pro", "M3 Pro", "M4 Pro"), _PRO),
    **dict.fromkeys(("M1 Max", "M2 Max", "M3 Max", "M4 Max"), _MAX),
    **dict.fromkeys(("M2 Ultra", "M3 Ultra"), _ULTRA),
}
_BYTES = 3.82e9
_TOKENS = 512
_DECODED = 128
# The stock decoding of 4 bits: mask, convert (4 cycles) and multiply-add.
_CYCLES = 6.0
# Two norms with their weights, 7 products, 2 rotations, 2 copies into the cache, 2 products of attention, softmax, a
# copy, activation and its product, and 2 additions.
_LAYER_LAUNCHES = 23


@dataclass(frozen=True, slots=True)
class Checked:
    """A part's published range, lowest and highest, and the model's figure, in tokens a second."""

    chip: str
    published: tuple[float, float]
    predicted: float

    @property
    def error(self) -> float:
        """How far the prediction is outside the range, relative to its nearer end; above 0 it is too fast."""
        low, high = self.published
        return (self.predicted - max(low, min(high, self.predicted))) / max(low, min(high, self.predicted))


def prefill_checks() -> list[Checked]:
    config = read_decoder(SHAPES["llama-2-7b"])
    weights = sum(layer_weights(config, spec) for spec in config.layers)
    operations = 2.0 * weights * _TOKENS + attention_operations(config, _TOKENS)
    launches = _LAYER_LAUNCHES * len(config.layers)
    return [
        Checked(
            chip.name,
            (PREFILL[chip.name], PREFILL[chip.name]),
            _TOKENS / prefill_seconds(chip, operations, _BYTES, launches),
        )
        for chip in CHIPS
        if chip.name in PREFILL
    ]


def decode_checks() -> list[Checked]:
    config = read_decoder(SHAPES["llama-2-7b"])
    launches = _LAYER_LAUNCHES * len(config.layers)
    cached, found = cached_bytes(config, _DECODED // 2, 2), []
    for chip in CHIPS:
        if chip.name in DECODE:
            parts = step_seconds(chip, step_weights(config), _BYTES, _CYCLES, cached, launches)
            low, high = (share * chip.bandwidth / _BYTES for share in DECODE[chip.name])
            found.append(Checked(chip.name, (low, high), 1 / sum(parts.values())))
    return found


def table() -> Table:
    """Both checks, a row a part."""
    prefill = {one.chip: one for one in prefill_checks()}
    decode = {one.chip: one for one in decode_checks()}
    header = ("part", "published prefill", "predicted", "error", "published decode", "predicted", "error")
    rows = []
    for chip in CHIPS:
        cells = [cell for found in (prefill, decode) for cell in _cells(found.get(chip.name))]
        if any(cells):
            rows.append((chip.name, *cells))
    return Table("Roofline against llama.cpp, Llama-2-7B Q4_0, tok/s", header, tuple(rows))


def _cells(one: Checked | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    low, high = (f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in one.published)
    predicted = f"{one.predicted:.0f}" if one.predicted >= 100 else f"{one.predicted:.1f}"
    return low if low == high else f"{low}–{high}", predicted, f"{one.error:+.0%}" if one.error else "inside"
