from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import click.testing
import pytest

import russet

FAKES = Path(__file__).with_name("fakes.py")


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("russet_cli_fakes", FAKES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, fakes: ModuleType) -> list:
    """The fake models that commands load, in order."""
    models: list = []

    def load(name: str, **options: object) -> object:
        models.append(fakes.load(name, **options))
        return models[-1]

    monkeypatch.setattr(russet, "load", load, raising=False)
    return models


@pytest.fixture
def cli(loaded: list) -> Callable[..., click.testing.Result]:
    from russet.engine.cli import main

    def invoke(*arguments: str, input: str | bytes | None = None) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, arguments, input=input, prog_name="russet")

    return invoke


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `russet` on the fake model as a process of its own.

    A shell starts what runs in its background with Ctrl-C ignored, and that is handed on: tests of it start anew.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def popen(*arguments: str, **options: object) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, str(FAKES), *arguments]
        return subprocess.Popen(command, text=True, env=environment, **{**pipes, **options})

    yield popen
    signal.signal(signal.SIGINT, before)
