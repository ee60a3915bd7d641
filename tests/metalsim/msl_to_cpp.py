"""Metal Shading Language text -> C++ text for the headers in include/."""

from __future__ import annotations

import re

from msl_signature import ATTRIBUTES


class MetalError(RuntimeError):
    """What the simulator found wrong: a compile error, a fault, a divergent barrier."""


_DECLARATOR = r"\w+\s*(?:\[[^\]]*\]\s*)*"
_THREADGROUP = re.compile(
    r"(?<![\w*])threadgroup\s+((?:[\w:]+(?:\s*<[^;<>()]*>)?)(?:\s+(?:int|short|char|long))*)\s+"
    rf"({_DECLARATOR}(?:,\s*{_DECLARATOR})*);"
)
_PRELUDE = """#include <metal_stdlib>
typedef bfloat bfloat16_t;
typedef half float16_t;
#line 1 "kernel.metal"
"""
_LAUNCHER = """
#line 1 "launcher"
struct msim_ptr { void* p; template <class T> operator T*() const { return (T*)p; } };
struct msim_ref { void* p; template <class T> operator T&() const { return *(T*)p; } };
template <class T, class S> inline T msim_convert(S s) {
  if constexpr (std::is_same<S, msim::D3>::value) return T(s.x, s.y, s.z);
  else return T(s);
}
extern "C" int msim_entry(void** buffers, const msim::Launch* launch) {
  return msim::launch(*launch, [](void* p) {
    void** b = (void**)p; msim::Thread& t = *msim::rt().cur; (void)t; CALL;
  }, buffers);
}
extern "C" const char* msim_error() { return msim::rt().err; }
extern "C" void msim_ranges(int n, const char** lo, const char** hi, const char** names) {
  for (int i = 0; i < n; i++) msim::ranges()[i] = {lo[i], hi[i], names[i]};
  msim::ranges()[n].name = nullptr;
}
"""


def strip_comments(text: str) -> str:
    """Without comments, and with every line where it was."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m.group().count("\n") or " ", text, flags=re.S)


def split_arguments(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "<([{") - (character in ">)]}")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return [*parts, part.strip()] if part.strip() else parts


def to_cpp(metal: str, function: str, template_arguments: str) -> tuple[str, dict[int, str]]:
    """Return the C++ text and the names of the buffers by index."""
    source = re.sub(r"template\s*\[\[\s*host_name.*?;\s*\n", "\n", strip_comments(metal), flags=re.S)
    buffers, arguments = _parse_parameters(source, function)
    call = f"{function}{template_arguments}({', '.join(arguments)})"
    return _PRELUDE + _threadgroup_memory(source) + _LAUNCHER.replace("CALL", call), buffers


def _threadgroup_memory(source: str) -> str:
    """Turn `threadgroup T a[N], b;` into references into the simulator's threadgroup memory.

    Pointers and parameters stay as they are.
    """
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        declared = []
        for declarator in re.split(r",(?![^\[]*\])", match.group(2)):
            found = re.fullmatch(r"\s*(\w+)\s*((?:\[.*\]\s*)*)", declarator, re.S)
            assert found is not None, declarator
            name, extent = found.groups()
            count += 1
            key = f"msim_{count}_{name}"
            declared.append(
                f"typedef {match.group(1)} {key}_t{extent}; static const char {key} = 0; "
                f"auto& {name} = msim::tg_var<{key}_t>(&{key});"
            )
        return " ".join(declared)

    replaced = _THREADGROUP.sub(replace, source)
    # One that is left would become a variable of each thread, and a race unseen.
    if left := re.search(r"\bthreadgroup\s[^;(){}*&]*;", replaced):
        raise MetalError(f"threadgroup declaration not understood: {left.group()}")
    return replaced


def _parse_parameters(source: str, function: str) -> tuple[dict[int, str], list[str]]:
    head = re.search(rf"\bvoid\s+{re.escape(function)}\s*\(", source)
    if not head:
        raise MetalError(f"no kernel function {function}")
    end, depth = head.end(), 1
    while depth:
        depth += {"(": 1, ")": -1}.get(source[end], 0)
        end += 1
    buffers: dict[int, str] = {}
    arguments: list[str] = []
    for parameter in split_arguments(source[head.end() : end - 1]):
        declared = re.sub(r"\[\[.*?\]\]", "", parameter).strip()
        name = declared.split()[-1].lstrip("*&")
        kind = declared[: declared.rindex(name)].strip()
        if buffer := re.search(r"\[\[\s*buffer\s*\(\s*(\d+)\s*\)", parameter):
            index = int(buffer.group(1))
            buffers[index] = name
            arguments.append(f"msim_{'ptr' if kind.endswith('*') else 'ref'}{{b[{index}]}}")
        elif (attribute := re.search(r"\[\[\s*(\w+)\s*\]\]", parameter)) and attribute.group(1) in ATTRIBUTES:
            arguments.append(f"msim_convert<{kind}>({ATTRIBUTES[attribute.group(1)]})")
        else:
            raise MetalError(f"unsupported kernel parameter: {parameter}")
    return buffers, arguments
