"""Which device Core ML means to run each operation of a package on; only macOS can tell."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from russet.engine.errors import InvalidOptionError
from russet.models.runtimes import package_kind
from russet.models.runtimes.coreml import UNITS
from russet.models.runtimes.coreml_package import packages_of

DEVICES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


@dataclass(frozen=True)
class Placement:
    """One function of a package: operations by device, and the share of the estimated cost that each device gets."""

    package: str
    function: str
    operations: dict[str, int]
    cost: dict[str, float]


def placements(path: Path, units: str) -> list[Placement]:
    """Ask Core ML's compute plan of every function; raises InvalidOptionError where there is no Core ML."""
    package_kind(path)
    if sys.platform != "darwin":
        raise InvalidOptionError(f"Where {path.name} would run is Core ML's to tell, which is on macOS only.")
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    found = []
    for package in packages_of(path):
        compiled = ct.models.utils.compile_model(str(package))
        plan = MLComputePlan.load_from_path(compiled, compute_units=getattr(ct.ComputeUnit, UNITS[units]))
        # Prefill before decode, in whatever order the package names them.
        for name, function in sorted(plan.model_structure.program.functions.items(), reverse=True):
            found.append(_of_function(package.name, name, plan, function.block.operations))
    return found


def _of_function(package: str, name: str, plan: Any, operations: list[Any]) -> Placement:
    counts: Counter[str] = Counter()
    costs: Counter[str] = Counter()
    for operation in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:  # constants
            continue
        device = type(usage.preferred_compute_device).__name__
        counts[DEVICES.get(device, device)] += 1
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        costs[DEVICES.get(device, device)] += 0.0 if cost is None else cost.weight  # pyright: ignore[reportArgumentType]
    total = sum(costs.values()) or 1.0
    return Placement(package, name, dict(counts), {device: cost / total for device, cost in costs.items()})
