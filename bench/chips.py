"""Apple's M parts as far as a roofline needs them.

Bandwidth and GPU cores are Apple's, as its specification pages have them for the largest GPU of each part. Clocks are
what users measured. The M5 family multiplies matrices in units of their own ("neural accelerators"): 22 TFLOP/s is what
llama.cpp's published prefill of an M5 Pro comes to, and the others are scaled by cores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LANES = 128
"""Float operations that a core issues a cycle; a multiply-add is one."""

MATRIX_SHARE = 0.67
"""Of the float peak, what a prefill of 4-bit weights reaches up to M4: fitted to llama.cpp's published figures."""


@dataclass(frozen=True, slots=True)
class Chip:
    """Bytes a second, GPU cores, GPU clock in Hz, and for M5 the operations a second of its matrix units in use."""

    name: str
    bandwidth: float
    cores: int
    clock: float
    matrix: float | None = None

    @property
    def issued(self) -> float:
        """Float instructions a second."""
        return self.cores * LANES * self.clock

    @property
    def prefill_operations(self) -> float:
        """Floating-point operations a second that matrix products reach."""
        return self.matrix or MATRIX_SHARE * 2 * self.issued


def _chip(name: str, gigabytes: float, cores: int, gigahertz: float, teraflops: float | None = None) -> Chip:
    return Chip(name, gigabytes * 1e9, cores, gigahertz * 1e9, teraflops * 1e12 if teraflops else None)


CHIPS = (
    _chip("M1", 68.25, 8, 1.278),
    _chip("M1 Pro", 200, 16, 1.296),
    _chip("M1 Max", 400, 32, 1.296),
    _chip("M1 Ultra", 800, 64, 1.296),
    _chip("M2", 100, 10, 1.398),
    _chip("M2 Pro", 200, 19, 1.398),
    _chip("M2 Max", 400, 38, 1.398),
    _chip("M2 Ultra", 800, 76, 1.398),
    _chip("M3", 100, 10, 1.38),
    _chip("M3 Pro", 150, 18, 1.38),
    _chip("M3 Max", 400, 40, 1.38),
    _chip("M3 Ultra", 819, 80, 1.38),
    _chip("M4", 120, 10, 1.47),
    _chip("M4 Pro", 273, 20, 1.578),
    _chip("M4 Max", 546, 40, 1.578),
    _chip("M5", 153, 10, 1.578, 11),
    _chip("M5 Pro", 307, 20, 1.6, 22),
    _chip("M5 Max", 614, 40, 1.6, 44),
)

BINNED_BANDWIDTH = {("M3 Max", 30): 300e9, ("M4 Max", 32): 410e9}
"""Bytes a second of parts whose smaller GPU has fewer memory channels as well, by name and cores."""


def detect(processor: str | None, cores: int | None) -> Chip | None:
    """The part that a Mac's processor name ("Apple M3 Max") and GPU cores stand for; None for every other machine."""
    if processor is None:
        return None
    named = processor.removeprefix("Apple ").strip()
    chip = next((chip for chip in CHIPS if chip.name == named), None)
    if chip is None or not cores or cores == chip.cores:
        return chip
    return replace(
        chip,
        name=f"{chip.name}, {cores} cores",
        bandwidth=BINNED_BANDWIDTH.get((chip.name, cores), chip.bandwidth),
        cores=cores,
        matrix=chip.matrix * cores / chip.cores if chip.matrix else None,
    )
