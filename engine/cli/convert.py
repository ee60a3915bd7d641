"""`russet convert`: a checkpoint of any known kind in; an MLX model folder out, or a package for Apple's runtimes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.conversion import show_conversion
from russet.engine.cli.export import EXPORT_OPTIONS, export_and_show, refuse_mixed
from russet.engine.cli.options import with_options
from russet.engine.errors import InvalidOptionError

if TYPE_CHECKING:
    from russet.converters.convert import Report
    from russet.converters.quantize import Rule


class RuleType(click.ParamType):
    """`PATTERN=BITS[:GROUP]`."""

    name = "PATTERN=BITS[:GROUP]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rule:
        from russet.converters.quantize import Rule

        try:
            return value if isinstance(value, Rule) else Rule.parse(value)
        except InvalidOptionError as error:
            self.fail(str(error), param, ctx)


def export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which runtime is converted for, and how its packages are made."""
    return with_options(function, EXPORT_OPTIONS)


@click.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@export_options
@click.option(
    "--bits",
    type=click.Choice(["16", "8", "4", "2"]),
    help="Bits a weight of linear layers and embeddings.  [default: as the checkpoint has them]",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale.  [default: 64; 32 for GGUF blocks kept as they are]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Number format of scales and of what is not quantised.  [default: the checkpoint's]",
)
@click.option(
    "--rule",
    "rules",
    type=RuleType(),
    multiple=True,
    help="Other bits for the tensors whose name matches a glob, as in '*.mlp.*=4:64'; the first match wins.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and its size; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(
    src: Path,
    dst: Path,
    to: str,
    bits: str | None,
    group_size: str | None,
    dtype: str | None,
    rules: tuple[Rule, ...],
    dry_run: bool,
    as_json: bool,
    **package: Any,
) -> None:
    """Convert the checkpoint SRC into the new MLX model folder DST, or with --to into a package for Apple's runtimes.

    SRC is a Hugging Face folder (safetensors or PyTorch pickles), a GGUF file, an OpenELM checkpoint as corenet saves
    it, or an AFM state dict as tamm saves it. No code of a checkpoint is run. The result is read back and compared
    with SRC before DST appears; nothing is left behind when anything fails.

    With --to, SRC is whatever `russet chat -m` takes: a model folder, a GGUF file, a hub repository or a catalog name.
    """
    refuse_mixed(to, {**package, "bits": bits, "group_size": group_size, "dtype": dtype, "rule": rules})
    if to != "mlx":
        export_and_show(src, dst, to, package, dry_run=dry_run, as_json=as_json)
        return
    from russet.converters.convert import convert
    from russet.engine.cli.console import terminal_progress

    with terminal_progress() as progress:
        report = convert(
            src,
            dst,
            bits=int(bits) if bits else None,
            group_size=int(group_size) if group_size else None,
            dtype=dtype,
            rules=rules,
            dry_run=dry_run,
            progress=progress,
        )
    values = {field.name: getattr(report, field.name) for field in fields(report) if field.name != "plan"}
    show_conversion(values, report.notes, _table(report) if dry_run else "", _summary(report), as_json=as_json)


def _table(report: Report) -> str:
    """One line for the tensors of the same place in every layer that are stored alike."""
    lines: dict[tuple[str, str], list[int]] = {}
    for planned in report.plan:
        name = re.sub(r"\.\d+\.", ".*.", planned.source.name)
        target = planned.target
        layout = target.dtype if target.bits is None else f"{target.bits} bits, group {target.group_size}"
        count = lines.setdefault((name, layout), [0, 0])
        count[0] += 1
        count[1] += planned.nbytes
    width = max(len(name) for name, _ in lines)
    rows = [
        f"{name:<{width}}  {layout:<18} {count:>5} tensors {nbytes:>15,} bytes"
        for (name, layout), (count, nbytes) in lines.items()
    ]
    return "\n".join(rows)


def _summary(report: Report) -> str:
    sizes = (
        f"{report.tensors} tensors of {report.family} from {report.kind}: {_size(report.bytes_in)} -> "
        f"{_size(report.bytes_out)}, {report.bits_per_weight:.2f} bits a weight"
    )
    if report.dry_run:
        return f"Would write {report.dst}: {sizes} ({report.bytes_out:,} bytes with all files)."
    errors = ", ".join(f"{name} {error:.2%}" for name, error in report.errors.items() if error)
    checked = "read back and run" if report.forward else "read back"
    return f"Wrote {report.dst}: {sizes}; {checked}, {f'relative error {errors}' if errors else 'no error'}."


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
