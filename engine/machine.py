"""What the system says of this machine: processor, GPU cores, power, heat and memory pressure. No MLX in here.

A value that cannot be read is None, never a guess.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

THERMAL = {0: "nominal", 1: "moderate", 2: "heavy", 3: "trapping", 4: "sleeping"}
"""Levels of Darwin's notification com.apple.system.thermalpressurelevel; at "heavy" and above the chip is slowed."""

MEMORY = {1: "normal", 2: "warn", 4: "critical"}
"""Values of kern.memorystatus_vm_pressure_level, Activity Monitor's green, yellow and red."""

POWER_MODES = {"0": "automatic", "1": "low power", "2": "high power"}


def command_output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def on_mac() -> bool:
    return sys.platform == "darwin"


def cpu_name() -> str | None:
    """The processor's name as the system gives it; on Apple silicon that is the chip's, such as "Apple M3 Max"."""
    if on_mac():
        return command_output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine() or None


@cache
def gpu_cores() -> int | None:
    """The number of GPU cores of a Mac, which takes it a second or two to say."""
    text = command_output("system_profiler", "-json", "SPDisplaysDataType") if on_mac() else None
    try:
        displays = json.loads(text or "{}").get("SPDisplaysDataType", [])
        return next((int(display["sppci_cores"]) for display in displays if "sppci_cores" in display), None)
    except (ValueError, TypeError, AttributeError):
        return None


def model_identifier() -> str | None:
    """A Mac's hardware, such as "Mac15,9"."""
    return command_output("sysctl", "-n", "hw.model") if on_mac() else None


def power() -> tuple[str | None, str | None]:
    """The power mode, and where power comes from ("AC Power", "Battery Power").

    On Linux the mode is the frequency governor of the first core, and the source is not looked for.
    """
    if not on_mac():
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return (governor.read_text().strip() if governor.is_file() else None), None
    settings = command_output("pmset", "-g") or ""
    mode = re.search(r"^\s*powermode\s+(\d)", settings, re.MULTILINE)
    mode = mode or re.search(r"^\s*lowpowermode\s+(\d)", settings, re.MULTILINE)
    source = re.search(r"Now drawing from '([^']+)'", command_output("pmset", "-g", "ps") or "")
    return POWER_MODES.get(mode[1]) if mode else None, source[1] if source else None


@dataclass(frozen=True, slots=True)
class Pressure:
    """How hot a Mac is, a value of `THERMAL`, and how short of memory, one of `MEMORY`; None elsewhere."""

    thermal: str | None = None
    memory: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


def pressure() -> Pressure:
    """Heat and memory pressure at this moment; it takes a Mac some 20 ms to say."""
    if not on_mac():
        return Pressure()
    thermal = (command_output("notifyutil", "-g", "com.apple.system.thermalpressurelevel") or "").split()
    memory = command_output("sysctl", "-n", "kern.memorystatus_vm_pressure_level")
    return Pressure(_level(THERMAL, thermal[-1] if thermal else None), _level(MEMORY, memory))


def _level(names: dict[int, str], text: str | None) -> str | None:
    return names.get(int(text)) if text and text.isdigit() else None
