"""README.md and the other pages hold what they say: Python runs, commands and files exist, tables match the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from russet.engine.cli import EPILOG, main
from russet.models.catalog import CATALOG
from russet.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
ROOMS = ("engine", "models", "converters", "kernels", "bench", "russet", "tests", "docs")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CARDS = sorted(path for room in ROOMS[:5] for path in (ROOT / room).rglob("README.md"))
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
page_or_card = pytest.mark.parametrize("page", PAGES + CARDS, ids=lambda path: str(path.relative_to(ROOT)))


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[list[str]]:
    """Every command of the shell blocks and transcripts, pipes taken apart, comments left out."""
    lines = [line for block in fences(text, "sh") for line in block.splitlines()]
    lines += [line[2:] for block in fences(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r"\s\|\s", line)]
    return [command for command in words if command]


@pytest.fixture
def named_tiny(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in which the tiny model goes by the README's name, with room for its long byte-level prompts."""
    folder = tmp_path / "cache" / "models" / "smollm2-135m"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_the_python_snippets_run_one_after_the_other(named_tiny, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = fences(README, "python")
    assert len(snippets) >= 2
    names: dict[str, object] = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"README.md, Python block {number + 1}", "exec"), names)
    assert capsys.readouterr().out.endswith("temperature is -1; it must be 0 or above.\n")
    assert Path("talk.russet").is_file()


def test_the_json_transcript_has_the_keys_of_a_real_one(named_tiny) -> None:
    (shown,) = [
        json.loads(line) for block in fences(README, "console") for line in block.splitlines() if line.startswith("{")
    ]
    result = CliRunner().invoke(main, ["generate", "-p", "Why is the sky blue?", "--max-tokens", "4", "--json"])
    assert result.exit_code == 0, result.stderr
    real = json.loads(result.stdout)
    assert list(shown) == list(real)
    assert list(shown["timings"]) == list(real["timings"])


def test_every_command_is_shown_and_has_a_help() -> None:
    shown = [words[1:] for words in command_lines(README) if words[0] == "russet"]
    assert {words[0] for words in shown} == set(main.list_commands(click.Context(main)))
    for words in shown:
        _, rest = resolve(words)
        result = CliRunner().invoke(main, [*words[: len(words) - len(rest)], "--help"])
        assert result.exit_code == 0


@page_or_card
def test_the_russet_commands_take_the_options_shown(page: Path) -> None:
    """In shell blocks and transcripts, in indented lines, and within a line of text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?:^|^ {4}|^\$ |\| )(russet [a-z].*)", text, re.MULTILINE)
    lines += re.findall(r"`(russet [a-z][^`]*)`", text)
    for line in lines:
        # Brackets say what may be left out, and bars what to choose from.
        words = re.sub(r"[\[\]|]", " ", line.partition(" # ")[0]).split()[1:]
        leaf, rest = resolve(words)
        known = {name for parameter in leaf.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
        assert [word for word in options if word not in known] == [], line


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The innermost command that `words` name, and what is left of them."""
    found: click.Command = main
    while isinstance(found, click.Group) and words:
        inner = found.get_command(click.Context(found), words[0])
        if inner is None:
            break
        found, words = inner, words[1:]
    return found, words


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """Both engines' medians stand in two rows of docs/benchmarks.md, one after the other, and so do the ratios."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    medians = [[number(cell) for cell in cells(line)] for line in page.splitlines() if line.startswith("|")]
    shown = [cells(line) for line in README.partition("## Performance")[2].splitlines() if line.startswith("| ")]
    checked = 0
    for row in shown:
        ours, theirs, ratios = row[2:4], row[4].split(", "), row[5:]
        if None in map(number, ours) or len(theirs) != 2:  # a heading, or a rate that the page has as a time
            continue
        assert any(
            all(number(cell) in first for cell in ours)
            and all(number(cell) in second for cell in theirs)
            and all(any(is_rounded(cell, value) for value in first) for cell in ratios)
            for first, second in pairwise(medians)
        ), row
        checked += 1
    assert checked >= 6


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def number(cell: str) -> float | None:
    """The number that a cell begins with, without its spread; None where it begins with none."""
    found = re.match(r"[\d,]*\.?\d+", cell)
    return float(found.group().replace(",", "")) if found else None


def is_rounded(cell: str, value: float | None) -> bool:
    """Whether a cell is a value with as many decimals as the cell has, rounded either way at the middle."""
    digits = len(cell.partition(".")[2])
    return value is not None and abs(float(cell) - value) <= 0.5 * 10**-digits + 1e-9


@page
def test_the_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"`make ([a-z]+)[`\s]", text)
    commands += [words[1] for words in command_lines(text) if words[0] == "make"]
    assert set(commands) <= set(targets)


def test_the_two_commands_of_a_newcomer_are_on_the_first_screen() -> None:
    screen = "\n".join(README.splitlines()[:24])
    assert "\nmake chat " in screen and "\nmake test " in screen


@page_or_card
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_the_files_named_exist(page: Path) -> None:
    found = re.findall(rf"(?<![\w/.-])((?:{'|'.join(ROOMS)}|\.ci)/[\w./-]*\w/?)", page.read_text(encoding="utf-8"))
    # russet/engine/... is named as what not to edit, NAME.py stands for a file that is yet to be written.
    missing = [name for name in found if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []


def test_the_variables_of_russet_are_described_and_read() -> None:
    described = set(re.findall(r"^\| `(RUSSET_[A-Z_]+)`", README, re.MULTILINE))
    assert variables(*ROOMS[:5]) >= described
    assert variables("engine", "models", "converters", "bench") <= described


def test_the_other_variables_described_are_read() -> None:
    table = README.partition("## Configuration")[2].partition("## ")[0]
    for name in re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", table):
        assert any(name in text for text in sources(*ROOMS[:5])), name


def variables(*rooms: str) -> set[str]:
    return {name for text in sources(*rooms) for name in re.findall(r"\"(RUSSET_[A-Z_]+)\"", text)}


def sources(*rooms: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def test_the_exit_codes_are_those_of_the_help() -> None:
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == re.findall(r"^  (\d+) ", EPILOG, re.MULTILINE)


def test_the_tables_of_models_are_complete() -> None:
    models = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for text in (README.partition("## Models")[2], models.partition("## Families")[2]):
        table = text.partition("\n|")[2].partition("\n\n")[0].partition("|---|")[2]
        assert set(re.findall(r"`(\w+)`", table)) == set(FAMILIES)
    for name in CATALOG:
        assert f"`{name}`" in README and f"| `{name}` |" in models
