"""What `make` does before there is a Python to do it: the sentences of .ci/venv, and how a prompt travels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder of commands to be the whole PATH: no Python, no uv, Linux x86-64 with glibc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "make", "grep", "rm", "touch", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    script(folder / "uname", "case $1 in -s) echo Linux ;; *) echo x86_64 ;; esac")
    script(folder / "ldd", "echo GLIBC 2.36")
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(tools: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={"PATH": str(tools)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "body", "told"),
    [
        ("uname", "case $1 in -s) echo Darwin ;; *) echo x86_64 ;; esac", "MLX needs Apple silicon"),
        ("uname", "case $1 in -s) echo MINGW64_NT ;; *) echo x86_64 ;; esac", "Windows Subsystem for Linux"),
        ("uname", "case $1 in -s) echo Linux ;; *) echo riscv64 ;; esac", "this is Linux riscv64"),
        ("ldd", "echo musl libc >&2; exit 1", "this Linux has musl"),
        ("python3", "exit 1", "Python 3.11 or later is missing"),
        ("python3.12", '[ "$2" != "import ensurepip, venv" ]', "apt install python3-venv"),
        ("python3.12", '[ "$1" = -c ] || { mkdir "$3"; exit 1; }', "could not make the virtual environment"),
    ],
)
def test_what_is_missing_is_told_in_a_sentence(tools, tmp_path, command, body, told):
    script(tools / command, body)
    made = run(tools, ROOT / ".ci" / "venv", tmp_path / "venv")
    assert made.returncode == 1
    assert told in made.stderr
    assert made.stderr.startswith("russet: ")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_asked_for_by_name_is_not_replaced(tools, tmp_path):
    script(tools / "python3", "exit 0")
    made = run(tools, ROOT / ".ci" / "venv", tmp_path / "venv", PYTHON="python9")
    assert (made.returncode, "PYTHON=python9 is not a Python of version 3.11" in made.stderr) == (1, True)


def test_an_environment_whose_python_is_gone_is_made_anew(tools, tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    for name in ("pyvenv.cfg", ".russet"):
        (venv / name).write_text("")
    (tools / "python3").symlink_to(sys.executable)
    made = run(tools, ROOT / ".ci" / "venv", venv)
    assert made.returncode == 0, made.stderr
    assert (venv / "bin" / "python").exists()
    assert not (venv / ".russet").exists()


def test_uv_makes_the_environment_where_it_is_installed(tools, tmp_path):
    script(tools / "uv", 'echo "$@"')
    made = run(tools, ROOT / ".ci" / "venv", "venv")
    assert made.stdout == "venv --quiet --python 3.13 venv\n"


@pytest.mark.parametrize("reachable", [True, False])
def test_an_installation_that_fails_tells_whether_the_network_is_at_fault(tools, tmp_path, reachable):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    script(tmp_path / "venv" / "bin" / "python", f'[ "$1" = -c ] && exit {0 if reachable else 1}; exit 1')
    made = run(tools, ROOT / ".ci" / "install", tmp_path / "venv", "-e", ".")
    assert made.returncode == 1
    assert ("a package could not be installed" if reachable else "index cannot be reached") in made.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "given"),
    [
        ([], {}, "[chat][-m][smollm2-135m]"),
        ([], {"PROMPT": "%n@%m %1~ %#"}, "[chat][-m][smollm2-135m]"),
        (['PROMPT=it\'s "$5" `x` *'], {}, '[chat][-m][smollm2-135m][-p][it\'s "$5" `x` *]'),
        (["MODEL=some/model"], {}, "[chat][-m][some/model]"),
    ],
)
def test_a_prompt_reaches_russet_as_it_was_typed(tools, tmp_path, arguments, environment, given):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    script(venv / "bin" / "russet", 'for word; do printf "[%s]" "$word"; done')
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / ".russet").write_text("")
    made = run(tools, "make", "chat", f"VENV={venv}", *arguments, **environment)
    assert (made.stdout, made.stderr, made.returncode) == (given, "", 0)
