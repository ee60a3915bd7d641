"""`russet bench placement`: the devices that Core ML chooses for a package's operations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from russet.models.runtimes import COMPUTE_UNITS


@click.command()
@click.argument("package", type=click.Path(exists=True, path_type=Path))
@click.option("--compute-units", "units", type=click.Choice(COMPUTE_UNITS), default="all", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def placement(package: Path, units: str, as_json: bool) -> None:
    """Show on which device Core ML means to run the operations of PACKAGE; on a Mac only.

    A line a function: how many operations each device gets, and its share of the cost that Core ML estimates.
    """
    from russet.bench.placement import placements

    found = placements(package, units)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found]))
        return
    for entry in found:
        devices = ", ".join(
            f"{device} {count} operations ({entry.cost.get(device, 0):.0%} of the cost)"
            for device, count in sorted(entry.operations.items())
        )
        click.echo(f"{entry.package}, {entry.function}: {devices}")
