"""Refuse what only one of the two compilers takes: a kernel body has to be Metal and, by prelude_cuda.h, CUDA."""

from __future__ import annotations

import re

from msl_signature import ATTRIBUTES
from msl_to_cpp import split_arguments, strip_comments

_VECTOR = r"\b(?:float|half|bfloat|u?int|u?short|u?char|bool)[234]"
_SPACES = r"\b(?:device|constant|thread|threadgroup|TG)\b"
_SCALAR = r"(?:float|half|int|uint|short|ushort|bool|char|uchar|bfloat16_t|float16_t)"
# Anywhere in a body or a header of its own; preludes may use what their one compiler has.
_FORBIDDEN = (
    (rf"{_VECTOR}\s*\(", "vector constructor: set the components one by one"),
    (r"\.[xyzw]{2,}\b", "swizzle: name one component"),
    (r"\bdouble\b", "Metal has no 64-bit float"),
    (r"\bthreadgroup\s+\w+(?:<[^>]*>)?\s*[*&]", "threadgroup pointer: write TG(type)"),
    (r"\b(?:simdgroup_matrix|simdgroup_load|simdgroup_store)\b", "Metal's matrices: use the tiles of the preludes"),
    (r"\b(?:__shfl\w*|__syncthreads|__syncwarp|threadIdx|blockIdx|__half\w*|__nv_\w+|asm)\b", "CUDA only"),
    (r"\batomic\w*", "atomics make results depend on the order of threads"),
    (r"\bbfloat16_t\s*\(", "conversion to bfloat16: write T(float)"),
    (r"\bfor\s*\([^;]*:[^;]*\)", "range for"),
)


def lint_body(source: str) -> list[str]:
    """What is wrong with a kernel's body, [] if nothing is."""
    text = strip_comments(source)
    return _matches(text)


def lint_header(source: str) -> list[str]:
    """What is wrong with a header that bodies share."""
    text = strip_comments(source)
    attributes = [f"{name}: a header does not see the attributes" for name in ATTRIBUTES if name in text]
    return _matches(text) + attributes + lint_declarations(text)


def lint_declarations(source: str) -> list[str]:
    """What Metal asks of functions and variables outside the kernel, for preludes too."""
    text = strip_comments(source)
    problems = []
    for match in re.finditer(r"\b[\w>]+\s+\w+\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)\s*\{", text):
        for parameter in split_arguments(match.group(1)):
            if re.search(r"[*&]\s*\w*\s*$", parameter) and not re.search(_SPACES, parameter):
                problems.append(f"parameter without an address space: {parameter}")
    for statement in _outside_braces(re.sub(r"#[^\n]*", "", text)):
        if re.fullmatch(
            rf"(?:static\s+|const\s+|constexpr\s+)*{_SCALAR}\s+\w+\s*(?:\[[^\]]*\]\s*)*(?:=.*)?", statement
        ):
            problems.append(f"variable outside the constant address space: {statement}")
    return problems


def _matches(text: str) -> list[str]:
    return [f"{m.group().strip()}: {why}" for pattern, why in _FORBIDDEN for m in re.finditer(pattern, text)]


def _outside_braces(text: str) -> list[str]:
    statements, depth, statement = [], 0, ""
    for character in text:
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            # A function ends here; an initialiser goes on to its semicolon.
            statement = statement if depth or statement.rstrip().endswith("=") else ""
        elif character == ";" and depth == 0:
            statements.append(" ".join(statement.split()))
            statement = ""
        elif depth == 0:
            statement += character
    return statements
