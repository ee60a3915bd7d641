"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import russet
from russet.engine import errors

ROOT = Path(__file__).parents[1]
ROOMS = ("bench", "converters", "engine", "kernels", "models")
SUFFIXES = (".py", ".c", ".h", ".metal")
MAX_LINES = 300
MAX_FUNCTION_LINES = 50

SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in SUFFIXES)
MODULES = [path for path in SOURCES if path.suffix == ".py"] + sorted((ROOT / "russet").glob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_root_of_kernels_is_no_package() -> None:
    """With the repository on sys.path it would shadow Hugging Face's package `kernels`, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_import_package_is_links_and_little_else() -> None:
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "russet").iterdir() if path.is_symlink()}
    assert links == {room: f"../{room}" for room in ROOMS}
    files = {path.name for path in (ROOT / "russet").iterdir() if not path.is_symlink()}
    assert files - {"__pycache__"} == {"__init__.py", "__main__.py", "py.typed"}


def test_every_name_of_the_package_is_there() -> None:
    for name in russet.__all__:
        assert getattr(russet, name) is not None
    assert dir(russet) == sorted(russet.__all__)


def test_options_and_errors_can_be_had_without_mlx() -> None:
    script = """
import sys, russet
russet.RussetError, russet.GenerationOptions(temperature=0.5)
assert not {"mlx", "transformers", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short_and_finished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert re.findall(r"\b(?:TODO|FIXME|XXX)\b", text) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_there_is_one_clock(path: Path) -> None:
    found = re.findall(r"\btime\.(?:perf_counter|monotonic|process_time|time)\b", path.read_text())
    assert not found or name_of(path) == "engine/timing.py"


def test_every_error_derives_from_one_and_explains_itself() -> None:
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(found) > 1
    for error in found:
        assert issubclass(error, errors.RussetError) and error.__doc__
        assert error.__name__.endswith("Error")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_errors_are_defined_in_one_place(path: Path) -> None:
    if name_of(path) == "engine/errors.py":
        return
    classes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base) for node in classes for base in node.bases}
    assert [base for base in bases if base.endswith(("Error", "Exception"))] == []
