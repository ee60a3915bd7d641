"""Every body and header compiles as Metal and as CUDA, as far as text and clang can tell."""

from __future__ import annotations

from itertools import combinations

import pytest
from address_spaces import CLANG, address_space_errors
from cuda_source import USABLE, cuda_source, nvrtc_errors
from msl_lint import lint_body, lint_declarations, lint_header
from msl_names import declared_names
from msl_signature import metal_source

from russet.kernels.backend import SOURCES, body, header, text
from russet.kernels.base import variant_name
from russet.kernels.registry import kernels

KERNELS = kernels()
OWN = ("matrices", "bounds")
"""Headers that each back-end has for itself."""


def test_every_source_belongs_to_a_kernel():
    named = {name for kernel in KERNELS for name in (kernel.body, *kernel.headers)}
    twins = {f"{name}_{target}.h" for name in ("prelude", *OWN) for target in ("metal", "cuda")}
    assert {path.name for path in SOURCES.iterdir()} == (named - {f"{name}.h" for name in OWN}) | twins


@pytest.mark.parametrize("name", sorted({kernel.body for kernel in KERNELS}))
def test_bodies_keep_to_the_portable_subset(name):
    assert lint_body(text(name)) == []


@pytest.mark.parametrize(
    "name", sorted({name for kernel in KERNELS for name in kernel.headers} - {f"{n}.h" for n in OWN})
)
def test_headers_keep_to_the_portable_subset(name):
    assert lint_header(text(name)) == []


@pytest.mark.parametrize("name", ["prelude_metal.h", "matrices_metal.h"])
def test_what_is_metals_own_names_address_spaces(name):
    assert lint_declarations(text(name)) == []


def test_headers_share_no_name():
    """Any two may come together, and what a prelude declares for its own use only one compiler sees."""
    headers = sorted(path.name for path in SOURCES.glob("*.h"))
    for first, second in combinations(headers, 2):
        targets = {name.rpartition("_")[2] for name in (first, second)}
        if targets != {"metal.h", "cuda.h"}:
            assert declared_names(text(first)) & declared_names(text(second)) == set(), f"{first} and {second}"


@pytest.mark.skipif(CLANG is None, reason="no clang: install clang 16 or later")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_address_spaces(kernel):
    for inputs in {variant_name(kernel.launch("metal", *i), i): i for i in kernel.examples("metal")}.values():
        launch = kernel.launch("metal", *inputs)
        function, arguments, metal = metal_source(
            kernel.name,
            header(kernel.headers, "metal"),
            body(kernel.body, kernel.inputs, "metal"),
            list(zip(kernel.inputs, inputs, strict=True)),
            list(zip(kernel.outputs, launch.output_dtypes, strict=True)),
            launch.template,
        )
        assert address_space_errors(metal, function, arguments) == []


@pytest.mark.skipif(not USABLE, reason="no NVRTC: tests/metalsim/cuda_source.py says where it comes from")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_kernel_compiles_for_cuda(kernel):
    assert nvrtc_errors(cuda_source(kernel, next(kernel.examples("cuda")))) == []


@pytest.mark.skipif(not USABLE, reason="no NVRTC: tests/metalsim/cuda_source.py says where it comes from")
def test_what_cuda_refuses_is_found():
    kernel = KERNELS[0]
    source = cuda_source(kernel, next(kernel.examples("cuda")))
    (error,) = nvrtc_errors(source.replace("namespace mlx::core::cu {\n__global__", "int load_words;\n__global__", 1))[
        :1
    ]
    assert "load_words" in error
