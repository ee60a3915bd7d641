"""The workflow's commands exist and take the options that they are given; nobody here can run it."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import yaml

from russet.engine.cli import main

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    """Every command of every step, pipes and redirections cut off."""
    scripts = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    lines = [line for script in scripts for line in script.replace("\\\n", " ").splitlines()]
    first = [re.split(r"\s(?:\|\|?|>|2>&1)\s", line.strip())[0] for line in lines]
    starts = (".venv/bin/", "RUSSET_", "make ", ".ci/")
    return [shlex.split(line) for line in first if line.startswith(starts) and not line.endswith('-c "')]


def test_the_russet_commands_take_their_options() -> None:
    found = [words for words in commands() if ".venv/bin/russet" in words]
    assert {words[words.index(".venv/bin/russet") + 1] for words in found} == {"doctor", "models", "generate", "bench"}
    for words in found:
        command: click.Command = main
        rest = words[words.index(".venv/bin/russet") + 1 :]
        while isinstance(command, click.Group) and (inner := command.get_command(click.Context(command), rest[0])):
            command, rest = inner, rest[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert [word for word in rest if re.match(r"--?[a-z]", word) and word not in known] == [], words


def test_the_modules_and_files_are_there() -> None:
    for words in commands():
        if words[:2] == [".venv/bin/python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None
        if words[0].startswith(".ci/"):
            assert (ROOT / words[0]).stat().st_mode & 0o111
    targets = re.findall(r"^([\w-]+):|^\$\(VENV\)/(\.\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {name or f".venv/{stamp}" for name, stamp in targets}
    assert {words[1] for words in commands() if words[0] == "make"} <= known


def test_the_mac_reports_whatever_happens() -> None:
    steps = WORKFLOW["jobs"]["macos"]["steps"]
    (upload,) = [step for step in steps if step.get("uses", "").startswith("actions/upload-artifact")]
    assert upload["if"] == "always()" and steps[-1] is upload
    independent = [step for step in steps if step.get("name") not in (None, "Install", "Summary")]
    assert len(independent) >= 7 and all("!cancelled()" in step["if"] for step in independent)
