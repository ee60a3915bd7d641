"""Compile and check every variant of every kernel on this device, where `russet doctor` takes one of each.

    python -m russet.kernels.every_variant                a table, and every failure with its reason
    python -m russet.kernels.every_variant --json FILE    the same as data

The hundreds of variants take minutes on CUDA, which compiles a few a second at best; exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from russet.engine.timing import now
from russet.kernels.backend import Backend, backend
from russet.kernels.base import Check, Kernel
from russet.kernels.registry import every_form


@dataclass(frozen=True, slots=True)
class Checked:
    """All variants of one kernel, and the seconds that compiling and running them took."""

    kernel: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.reason]

    @property
    def row(self) -> str:
        """Kernel, variants that passed, the largest error of those that ran, seconds."""
        errors = [check.error for check in self.checks if check.error is not None]
        largest = f"{max(errors):.1e}" if errors else ""
        passed = len(self.checks) - len(self.failures)
        return f"| {self.kernel} | {passed} of {len(self.checks)} | {largest} | {self.seconds:.1f} |"


def check_all(found: Iterable[Kernel], target: Backend) -> Iterator[Checked]:
    """Every kernel's variants, one name after the other; a failure does not stop the rest."""
    alike: dict[str, list[Kernel]] = {}
    for kernel in found:
        alike.setdefault(kernel.name, []).append(kernel)
    for name, forms in alike.items():
        started = now()
        checks = [kernel.check(inputs, target) for kernel in forms for inputs in kernel.examples(target)]
        checks.sort(key=lambda check: bool(check.reason))  # of two forms of one variant, a failure is what is kept
        yield Checked(name, tuple({check.variant: check for check in checks}.values()), now() - started)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Check every variant of Russet's kernels on this device.")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args(arguments)
    target = backend()
    if target is None:
        sys.exit("russet: MLX computes on a CPU here, so there are no kernels to check; run this on a GPU.")
    print("| kernel | variants that pass | largest error | seconds |\n| --- | --- | --- | --- |")
    found = []
    for checked in check_all(every_form(), target):
        found.append(checked)
        print(checked.row, flush=True)
    for checked in found:
        for check in checked.failures:
            print(f"\n{checked.kernel} {check.variant}: {check.reason}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(checked) for checked in found], indent=1) + "\n", encoding="utf-8")
    if any(checked.failures for checked in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
