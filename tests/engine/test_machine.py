"""What a Mac's own commands print, taken apart; on other systems nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from russet.engine import machine
from russet.engine.machine import Pressure, cpu_name, gpu_cores, model_identifier, power, pressure

DISPLAYS = {
    "SPDisplaysDataType": [{"_name": "Apple M3 Max", "sppci_cores": "40", "spdisplays_mtlgpufamilysupport": "x"}]
}
SETTINGS = """System-wide power settings:
Currently in use:
 standby              1
 powermode            {mode}
 sleep                1 (sleep prevented by sharingd)
"""


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str | None]]:
    """A Mac's commands and what they print; a command that is not there prints None."""
    printed: dict[str, str | None] = {
        "sysctl -n machdep.cpu.brand_string": "Apple M3 Max",
        "sysctl -n hw.model": "Mac15,9",
        "sysctl -n kern.memorystatus_vm_pressure_level": "2",
        "system_profiler -json SPDisplaysDataType": json.dumps(DISPLAYS),
        "pmset -g": SETTINGS.format(mode=2),
        "pmset -g ps": "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t80%; discharging",
        "notifyutil -g com.apple.system.thermalpressurelevel": "com.apple.system.thermalpressurelevel 1",
    }
    monkeypatch.setattr(machine, "on_mac", lambda: True)
    monkeypatch.setattr(machine, "command_output", lambda *command: printed.get(" ".join(command)))
    gpu_cores.cache_clear()
    yield printed
    gpu_cores.cache_clear()


def test_a_mac_tells_all(mac: dict[str, str | None]) -> None:
    assert (cpu_name(), gpu_cores(), model_identifier()) == ("Apple M3 Max", 40, "Mac15,9")
    assert power() == ("high power", "Battery Power")
    assert pressure() == Pressure("moderate", "warn")


def test_older_systems_know_low_power_only(mac: dict[str, str | None]) -> None:
    mac["pmset -g"] = " lowpowermode         1\n"
    assert power()[0] == "low power"
    mac["pmset -g"] = " lowpowermode         0\n"
    assert power()[0] == "automatic"


def test_what_cannot_be_read_is_none(mac: dict[str, str | None]) -> None:
    mac.clear()
    assert (cpu_name(), gpu_cores(), model_identifier(), power()) == (None, None, None, (None, None))
    assert pressure() == Pressure(None, None)


@pytest.mark.parametrize("text", ["", "[]", '{"SPDisplaysDataType": [{"_name": "Display"}]}', "not JSON"])
def test_displays_without_cores(mac: dict[str, str | None], text: str) -> None:
    mac["system_profiler -json SPDisplaysDataType"] = text
    assert gpu_cores() is None


def test_unknown_levels_have_no_name(mac: dict[str, str | None]) -> None:
    mac["sysctl -n kern.memorystatus_vm_pressure_level"] = "3"
    mac["notifyutil -g com.apple.system.thermalpressurelevel"] = "Failed"
    assert pressure() == Pressure(None, None)


def test_elsewhere_there_is_no_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "on_mac", lambda: False)
    gpu_cores.cache_clear()
    monkeypatch.setattr(machine, "command_output", lambda *_: pytest.fail("a Mac's command was run"))
    assert (pressure(), gpu_cores(), model_identifier()) == (Pressure(), None, None)


def test_a_command_that_fails_prints_nothing() -> None:
    assert machine.command_output("surely-no-command-of-this-machine") is None
    assert machine.command_output("false") is None
    assert machine.command_output("echo", "yes") == "yes"
