"""The Metal source that MLX makes of a custom kernel (mlx/backend/common/metal_kernel.cpp, MLX 0.32)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

# Kernel attributes that MLX adds where the body names them, and their C++ form in the simulator's thread `t`.
ATTRIBUTES = {
    "thread_position_in_grid": "t.gid",
    "thread_position_in_threadgroup": "t.tid",
    "threadgroup_position_in_grid": "t.tg_pos",
    "threads_per_threadgroup": "t.tpt",
    "threads_per_grid": "msim::rt().L.grid",
    "threadgroups_per_grid": "msim::rt().tg_count",
    "thread_index_in_threadgroup": "t.flat",
    "thread_index_in_simdgroup": "t.lane",
    "simdgroup_index_in_threadgroup": "t.sg",
    "simdgroups_per_threadgroup": "msim::rt().nsg",
    "threads_per_simdgroup": "32u",
}
_THREE = {name for name in ATTRIBUTES if "position" in name or name.endswith(("_grid", "per_threadgroup"))} - {
    "simdgroups_per_threadgroup"
}
_METAL_TYPES = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t", mx.bool_: "bool"}
# MLX passes inputs of fewer elements in the constant address space.
_CONSTANT_BELOW = 8

Template = Sequence[tuple[str, bool | int | mx.Dtype]]


def metal_type(dtype: mx.Dtype) -> str:
    return _METAL_TYPES.get(dtype) or f"{str(dtype).rpartition('.')[2]}_t"


def shape_arguments(name: str, array: mx.array, source: str) -> list[str]:
    """The suffixes of the shape arguments that MLX passes after input `name`."""
    return [suffix for suffix in ("_shape", "_strides", "_ndim") if array.ndim and name + suffix in source]


def metal_source(
    name: str,
    header: str,
    source: str,
    inputs: Sequence[tuple[str, mx.array]],
    outputs: Sequence[tuple[str, mx.Dtype]],
    template: Template,
) -> tuple[str, str, str]:
    """Return the kernel function's name, its template arguments, and the whole text but MLX's own preamble."""
    values = [_template_value(value) for _, value in template]
    function = f"custom_kernel_{name}" + ("__" + "_".join(values) if values else "")
    for _, array in inputs:
        size = math.prod(array.shape)
        function += f"_{metal_type(array.dtype)}" + ("s" if not array.ndim else "c" if size < _CONSTANT_BELOW else "")
    function += "".join(f"_{metal_type(dtype)}" for _, dtype in outputs)
    parameters = _parameters(source, inputs, outputs)
    parts = [header]
    if template:
        kinds = ", ".join(f"{_template_kind(value)} {key}" for key, value in template)
        parts.append(f"template <{kinds}>\n")
    parts.append(f"[[kernel]] void {function}(\n" + ",\n".join(parameters) + ") {\n" + source + "\n}\n")
    arguments = f"<{', '.join(values)}>" if template else ""
    if template:
        instance = f"{function}{arguments}"
        parts.append(f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({instance}) {instance};\n')
    return function, arguments, "".join(parts)


def _parameters(
    source: str, inputs: Sequence[tuple[str, mx.array]], outputs: Sequence[tuple[str, mx.Dtype]]
) -> list[str]:
    declared: list[str] = []
    for name, array in inputs:
        space = "constant" if math.prod(array.shape) < _CONSTANT_BELOW else "device"
        declared.append(f"const {space} {metal_type(array.dtype)}{'*' if array.ndim else '&'} {name}")
        kinds = {"_shape": "int*", "_strides": "int64_t*", "_ndim": "int&"}
        for suffix in shape_arguments(name, array, source):
            declared.append(f"const constant {kinds[suffix]} {name}{suffix}")
    declared += [f"device {metal_type(dtype)}* {name}" for name, dtype in outputs]
    numbered = [f"  {text} [[buffer({i})]]" for i, text in enumerate(declared)]
    used = [attribute for attribute in sorted(ATTRIBUTES) if attribute in source]
    return numbered + [f"  {'uint3' if name in _THREE else 'uint'} {name} [[{name}]]" for name in used]


def _template_value(value: bool | int | mx.Dtype) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value) if isinstance(value, int) else metal_type(value)


def _template_kind(value: bool | int | mx.Dtype) -> str:
    return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "typename"
