"""The `russet` command: one file a sub-command, each imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

COMMANDS = ("chat", "generate", "convert", "sparsify", "recipe", "sample", "models", "doctor", "bench")

EPILOG = """
\b
Exit codes:
  0    done; also when the reader of a pipe has seen enough
  1    a problem that you can mend, told in one sentence on standard error
  2    wrong usage: an unknown option, or a value out of its range
  70   a fault in Russet; RUSSET_TRACEBACK=1 shows where
  130  interrupted with Ctrl-C
"""


class LazyGroup(click.Group):
    """A group whose sub-commands are the `command` objects of the modules beside this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"{__name__}.{cmd_name}").command

    def main(self, *args: Any, **settings: Any) -> Any:
        from russet.engine.cli.streams import open_closed_streams

        open_closed_streams()
        return super().main(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        from russet.engine.cli.failures import failures_as_exit_codes, show_notes

        show_notes()
        with failures_as_exit_codes():
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="russet", prog_name="russet", message="%(prog)s %(version)s")
def main() -> None:
    """Run language models on this machine, with the shortest honest wait for the first token."""
