"""What the benchmarks' commands share to run on a model of random weights: --shape and --bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from russet.bench.shape_configs import SHAPES

if TYPE_CHECKING:
    from russet.bench.shapes import ShapeModel

BITS = 4


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --shape and --bits, as the parameters `shape` and `bits`."""
    shape = click.option(
        "--shape", type=click.Choice(list(SHAPES)), help="A model of this shape with random weights instead."
    )
    bits = click.option(
        "--bits", type=click.Choice(["2", "4", "8", "16"]), help=f"Bits a weight of --shape.  [default: {BITS}]"
    )
    return shape(bits(command))


def chosen_bits(shape: str | None, bits: str | None) -> int | None:
    """--bits as a number, None without --shape; raises UsageError where it stands alone."""
    if bits and not shape:
        raise click.UsageError("--bits belongs to --shape; a folder's weights have the bits that they have.")
    return int(bits or BITS) if shape else None


def random_model(shape: str, bits: int, dtype: str | None) -> ShapeModel:
    """The model that --shape, --bits and --dtype name."""
    from russet.bench import shapes
    from russet.models.loading import DTYPES

    return shapes.random_model(shape, bits, DTYPES[dtype] if dtype else None)
