"""The command group: help, lazy imports, exit codes, notes."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from russet.engine.cli import EPILOG

HEAVY = ("mlx", "transformers", "tokenizers", "numpy", "prompt_toolkit", "rich", "jinja2", "huggingface_hub", "gguf")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["chat", "--help"], ["generate", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from pathlib import Path
from russet.engine.cli import main
try:
    main({arguments!r}, prog_name="russet")
except SystemExit as done:
    assert done.code == 0, done.code
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands_and_the_exit_codes(cli) -> None:
    text = cli("--help").output
    for word in ("chat", "generate", "convert", "models", "doctor", "bench", "Exit codes", "130", "RUSSET_TRACEBACK"):
        assert word in text


def test_python_m_russet_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "russet", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "russet"


def test_an_error_of_the_users_is_one_sentence_and_1(cli) -> None:
    result = cli("generate", "-p", "toolong")
    assert result.exit_code == 1
    assert result.stderr == ("russet: The prompt has 9000 tokens, but the model's context holds 2048; shorten it.\n")
    assert result.stdout == ""


def test_a_fault_is_one_sentence_and_70(cli) -> None:
    result = cli("generate", "-p", "boom")
    assert result.exit_code == 70
    assert "unexpected ZeroDivisionError (division)" in result.stderr
    assert "RUSSET_TRACEBACK=1" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_traceback_is_shown_on_request(cli, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_TRACEBACK", "1")
    result = cli("generate", "-p", "boom")
    assert result.exit_code == 70
    assert "Traceback" in result.stderr and "pieces_for" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["chat", "--frobnicate"], ["generate"], ["generate", "-p", "x", "--temp", "hot"]]
)
def test_wrong_usage_is_2(cli, arguments: list[str]) -> None:
    assert cli(*arguments).exit_code == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("models", 0), ("chat -m nowhere -p x", 1), ("frobnicate", 2)])
def test_a_closed_stream_leads_to_nothing(tmp_path: Path, monkeypatch, closed: str, arguments: str, code: int) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path))
    command = f"exec '{sys.executable}' -m russet {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr == "" or "2>&-" not in closed


def test_notes_are_shown_once_each(cli, monkeypatch, fakes) -> None:
    def load(name: str, **options: object) -> object:
        for message in ("BLAS is slow", "BLAS is slow", "BLAS is %s"):
            logging.getLogger("russet").warning(message, *(["slower"] if "%" in message else []))
        logging.getLogger("russet").info("never shown")
        return fakes.FakeModel(name)

    monkeypatch.setattr("russet.load", load)
    for _ in range(2):
        result = cli("generate", "-p", "say hi")
        assert result.stderr == "russet: note: BLAS is slow\nrusset: note: BLAS is slower\n"
    assert result.stdout == "hi\n"


def test_an_operating_system_error_names_the_file(cli, monkeypatch) -> None:
    def load(name: str, **options: object) -> object:
        raise PermissionError(13, "Permission denied", "/models/x")

    monkeypatch.setattr("russet.load", load)
    result = cli("generate", "-p", "x")
    assert (result.exit_code, result.stderr) == (1, "russet: /models/x: Permission denied\n")


def test_the_documentation_has_the_exit_codes_of_the_help() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    documented = re.findall(r"^\| (\d+) \| (.*) \|$", page.replace("`", ""), re.MULTILINE)
    assert documented == re.findall(r"^  (\d+) +(.*)$", EPILOG, re.MULTILINE)
