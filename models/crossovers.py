"""From how many rows on weights are expanded: what this device measured, kept on disk between processes."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from russet.engine.paths import crossovers_file

_log = logging.getLogger("russet")

Found = dict[str, int | None]


class Kind(NamedTuple):
    """Packed matrices that share a crossover: `weights` is their number of weights, as a power of four."""

    bits: int
    group_size: int
    dtype: str
    weights: int

    def __str__(self) -> str:
        return f"{self.bits} bits, groups of {self.group_size}, {self.dtype}, {self.weights} weights"


def device_key() -> str:
    """This device and this MLX: a measurement holds for no other."""
    import mlx.core as mx

    return f"{mx.device_info().get('device_name', 'unknown')}, MLX {importlib.metadata.version('mlx')}"


class Crossovers:
    """Rows by kind for one device; None says that expanding never pays.

    A file that is damaged counts as empty, and one that cannot be written leaves the next process to measure again.
    """

    def __init__(self, device: str, path: Path | None = None) -> None:
        self._device = device
        self._path = path or crossovers_file()
        self.found = _read(self._path).get(device, {})

    def __contains__(self, kind: Kind) -> bool:
        return str(kind) in self.found

    def __getitem__(self, kind: Kind) -> int | None:
        return self.found[str(kind)]

    def __setitem__(self, kind: Kind, rows: int | None) -> None:
        self.found[str(kind)] = rows
        devices = _read(self._path)  # again, since another process may have written meanwhile
        self.found = devices.get(self._device, {}) | self.found
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(devices | {self._device: self.found}, indent=2))
            beside.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            _log.debug("%s is not kept: %s", self._path, error)


def _read(path: Path) -> dict[str, Found]:
    """Every device's measurements, as far as the file holds them in good shape."""
    try:
        devices = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(devices, dict):
        return {}
    return {device: _sound(found) for device, found in devices.items() if isinstance(found, dict)}


def _sound(found: dict[str, object]) -> Found:
    return {kind: rows for kind, rows in found.items() if rows is None or (type(rows) is int and rows > 0)}


def summary(found: Found) -> str:
    """One line, by bits: '4 bits from 200 to 310 rows on; 2 bits never'; sizes and data types are taken together."""
    by_bits: dict[str, list[int | None]] = {}
    for kind, rows in found.items():
        by_bits.setdefault(kind.partition(",")[0], []).append(rows)
    return "; ".join(f"{bits} {_range(rows)}" for bits, rows in sorted(by_bits.items()))


def _range(rows: list[int | None]) -> str:
    counts = sorted(row for row in rows if row is not None)
    if not counts:
        return "never"
    few, many = counts[0], counts[-1]
    span = f"from {few} rows on" if few == many else f"from {few} to {many} rows on, by size"
    return span if len(counts) == len(rows) else f"{span}, some sizes never"
