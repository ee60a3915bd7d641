from __future__ import annotations

import subprocess
import sys

import pytest
from msl_signature import metal_source

from russet.kernels.backend import body, header
from russet.kernels.base import variant_name
from russet.kernels.listing import main, metal_text
from russet.kernels.registry import kernels


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_the_listing_is_the_text_that_the_simulator_runs(kernel):
    inputs = next(kernel.examples("metal"))
    launch = kernel.launch("metal", *inputs)
    _, _, simulated = metal_source(
        kernel.name,
        header(kernel.headers, "metal"),
        body(kernel.body, kernel.inputs, "metal"),
        list(zip(kernel.inputs, inputs, strict=True)),
        list(zip(kernel.outputs, launch.output_dtypes, strict=True)),
        launch.template,
    )
    assert metal_text(kernel, inputs).strip() == simulated.strip()


def test_the_command_writes_a_file_a_variant(tmp_path):
    main(["q2_tiles", "--out", str(tmp_path)])
    (kernel,) = (kernel for kernel in kernels() if kernel.name == "q2_tiles")
    files = sorted(tmp_path.glob("q2_tiles-*.metal"))
    variants = {variant_name(kernel.launch("metal", *inputs), inputs) for inputs in kernel.examples("metal")}
    assert {file.stem for file in files} == {f"q2_tiles {variant}".replace(" ", "-") for variant in variants}
    assert all("[[kernel]] void custom_kernel_q2_tiles__" in file.read_text() for file in files)


def test_every_packing_of_a_projection_is_listed(tmp_path):
    main(["norm_matvec_silu", "--out", str(tmp_path)])
    text = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert len(text) == len(set(text.values())) >= 18
    assert all(any(f"BITS={bits}-" in name for name in text) for bits in (2, 4, 8, 16, 32))


def test_an_unknown_kernel_is_named():
    run = subprocess.run(
        [sys.executable, "-m", "russet.kernels.listing", "nothing"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    names = ", ".join(sorted(kernel.name for kernel in kernels()))
    assert f"there is no kernel nothing: {names} are there" in run.stderr
