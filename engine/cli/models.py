"""`russet models`: the catalog and the cache; fetching a model beforehand, and removing one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from russet.engine.cli.table import print_table


@click.group("models", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the models that have a name, and those in the cache.

    Without a sub-command: name, parameters, size on disk if it is there, and where it came or would come from.
    """
    if ctx.invoked_subcommand is not None:
        return
    models = _listing()
    if as_json:
        click.echo(json.dumps(models, indent=2))
    else:
        from russet.engine.storage import readable_bytes

        rows = [
            (
                model["name"],
                f"{model['parameters'] / 1e6:.0f} M" if model["parameters"] else "",
                readable_bytes(model["bytes"]) if model["cached"] else "-",
                "\n".join(model["sources"]) if sys.stdout.isatty() else " ".join(model["sources"]),
            )
            for model in models
        ]
        print_table(("NAME", "PARAMETERS", "ON DISK", "SOURCE"), rows)


@command.command("fetch")
@click.argument("name")
def fetch(name: str) -> None:
    """Fetch and convert NAME now, so that it is there without a network.

    NAME is a catalog name, a hub repository (org/name) or a GGUF file. Prints the folder.
    """
    from russet.engine.cli.console import terminal_progress
    from russet.models.download import resolve

    with terminal_progress() as progress:
        folder = resolve(name, progress=progress)
    click.echo(str(folder))


@command.command("remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Delete models from the cache."""
    from russet.engine.storage import readable_bytes
    from russet.models.cached import remove_model

    for name in names:
        model = remove_model(name)
        click.echo(f"Removed {model.name} ({readable_bytes(model.nbytes)}).", err=True)


def _listing() -> list[dict]:
    """The catalog in its order, then what else is cached; JSON types only."""
    from russet.models.cached import cached_models
    from russet.models.catalog import CATALOG, PREDICTORS
    from russet.models.shipped import shipped

    cached = {model.name: model for model in cached_models()}
    models = []
    for name in [*CATALOG, *(name for name in cached if name not in CATALOG)]:
        entry, copy = CATALOG.get(name), cached.get(name)
        sources = [copy.source] if copy else [str(source) for source in entry.sources] if entry else []
        models.append(
            {
                "name": name,
                "description": entry.description if entry else "",
                "family": entry.family if entry else None,
                "parameters": entry.parameters if entry else None,
                "licence": entry.licence if entry else None,
                "sources": sources,
                "cached": copy is not None,
                "path": str(copy.path) if copy else None,
                "bytes": copy.nbytes if copy else 0,
            }
        )
    for model in models:
        if not model["cached"] and (folder := shipped(model["name"])):
            model |= {"cached": True, "path": str(folder), "bytes": _size(folder)}
    return models + [_predictor(name, what, shipped(name)) for name, what in PREDICTORS.items()]


def _predictor(name: str, description: str, folder: Path | None) -> dict:
    """A predictor as the listing has models; it has no family and no count of parameters."""
    return {
        "name": name,
        "description": description,
        "family": None,
        "parameters": None,
        "licence": "Apache-2.0",
        "sources": [f"repository:models/weights/{name}"],
        "cached": folder is not None,
        "path": str(folder) if folder else None,
        "bytes": _size(folder) if folder else 0,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
