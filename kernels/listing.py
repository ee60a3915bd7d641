"""Print the Metal source that a Mac compiles for each variant of each kernel; it needs no Mac.

    python -m russet.kernels.listing               every variant, one after the other
    python -m russet.kernels.listing q2_tiles      one kernel's
    python -m russet.kernels.listing --out FOLDER  one file a variant

MLX makes the text when a call is traced for export, and prints it on request.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx

from russet.kernels.backend import build
from russet.kernels.base import Inputs, Kernel, variant_name
from russet.kernels.registry import every_form, kernels


def metal_text(kernel: Kernel, inputs: Inputs) -> str:
    """What MLX generates for one call: header, signature, body and instantiation, without its own preamble."""
    names = (kernel.inputs, kernel.outputs)
    function = build(kernel.name, kernel.body, kernel.headers, *names, "metal", kernel.strided)
    launch = kernel.launch("metal", *inputs)

    def call(*arrays: mx.array) -> list[mx.array]:
        return function(
            inputs=list(arrays),
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            template=list(launch.template),
            output_shapes=list(launch.output_shapes),
            output_dtypes=list(launch.output_dtypes),
            verbose=True,
        )

    printed = _printed(lambda folder: mx.export_function(str(folder / "call.mlxfn"), call, *inputs))
    return printed.split("```\n", 1)[1].rsplit("\n```", 1)[0] + "\n"


def listings(names: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """Kernel, variant and Metal text, for every variant of the kernels named, or of all."""
    for kernel in every_form():
        if not names or kernel.name in names:
            for inputs in kernel.examples("metal"):
                variant = variant_name(kernel.launch("metal", *inputs), inputs)
                yield kernel.name, variant, metal_text(kernel, inputs)


def _printed(work: Callable[[Path], object]) -> str:
    """What `work(folder)` writes to the process's standard output, which MLX's C++ does past sys.stdout."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+b") as file, tempfile.TemporaryDirectory() as folder:
        stdout = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            work(Path(folder))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        file.seek(0)
        return file.read().decode()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print the Metal source that a Mac compiles for Russet's kernels.")
    parser.add_argument("kernel", nargs="*", help="a kernel's name; all if there is none")
    parser.add_argument("--out", type=Path, help="write one file a variant into this folder")
    options = parser.parse_args(arguments)
    known = {kernel.name for kernel in kernels()}
    if unknown := [name for name in options.kernel if name not in known]:
        parser.error(f"there is no kernel {', '.join(unknown)}: {', '.join(sorted(known))} are there")
    for name, variant, text in listings(tuple(options.kernel)):
        if options.out is None:
            print(f"// {name} {variant}\n{text}")
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name} {variant}.metal".replace(" ", "-")).write_text(text)


if __name__ == "__main__":
    main()
