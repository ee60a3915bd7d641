"""Metal's address-space rules, checked by clang's C++ for OpenCL, which has the same four spaces; nothing runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from metalsim import INCLUDE
from msl_to_cpp import split_arguments, strip_comments

_NAMES = (os.environ.get("METALSIM_CLANG", ""), "clang-19", "clang-16", "clang")
CLANG = next((name for name in _NAMES if name and shutil.which(name)), None)
_FLAGS = [
    *("-x", "cl", "-cl-std=clc++2021", "-target", "spir64", "-Xclang", "-finclude-default-header"),
    *("-cl-ext=-all,+cl_khr_fp16", "-fsyntax-only", "-w"),
]


def address_space_errors(metal: str, function: str, template_arguments: str) -> list[str]:
    """clang's errors for a whole Metal text. It needs clang 16 or later."""
    assert CLANG is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cl")
        path.write_text(_to_opencl(metal, function, template_arguments))
        run = subprocess.run([CLANG, *_FLAGS, str(path)], capture_output=True, text=True, check=False)
    return [line for line in run.stderr.splitlines() if " error: " in line]


def _to_opencl(metal: str, function: str, template_arguments: str) -> str:
    source = re.sub(r"template\s*\[\[\s*host_name.*?;\s*\n", "\n", strip_comments(metal), flags=re.S)
    head = re.search(rf"(template\s*<([^>]*)>\s*)?\[\[\s*kernel\s*\]\]\s*void\s+{function}", source)
    assert head is not None
    if head.group(1):  # OpenCL kernels cannot be templates: the arguments become constants in front
        bound = ""
        values = split_arguments(template_arguments.strip("<>"))
        for parameter, value in zip(split_arguments(head.group(2)), values, strict=True):
            kind, name = parameter.rsplit(None, 1)
            typed = kind == "typename"
            bound += f"typedef {value} {name};\n" if typed else f"__constant constexpr {kind} {name} = {value};\n"
        source = source[: head.start()] + bound + source[head.start() + len(head.group(1)) :]
    source = re.sub(rf"\[\[\s*kernel\s*\]\]\s*void\s+{function}", f"__kernel void {function}", source)
    source = re.sub(r"\[\[[^\[\]]*\]\]|#include <metal\w*>", "", source)
    source = re.sub(r"const\s+constant\s+(\w+)\s*&\s*(\w+)", r"const constant \1& \2", source)
    return f'#include "{INCLUDE}/metal_check.h"\nusing namespace metal;\n#line 1 "kernel.metal"\n{source}'
