"""Options that several benchmarks share, each spelled and checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click


class Names(click.ParamType):
    """`NAME,NAME,...`, without repetitions."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(dict.fromkeys(str(value).split(",")))
        if not all(names):
            self.fail(f"{value!r} has an empty name in it; separate names by single commas.", param, ctx)
        return names


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def peer_option(names: Sequence[str]) -> Decorator:
    """--peer, which may be repeated, as `peers`."""
    return click.option("--peer", "peers", multiple=True, type=click.Choice(names), help="Time this engine as well.")


def repeat_option(default: int = 5) -> Decorator:
    return click.option(
        "--repeat", type=click.IntRange(1), default=default, show_default=True, help="Runs per engine and length."
    )


def generate_option() -> Decorator:
    return click.option(
        "--generate", type=click.IntRange(1), default=128, show_default=True, help="Tokens drawn per run."
    )


def dtype_option() -> Decorator:
    return click.option(
        "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Precision that everyone computes in."
    )


def draft_option() -> Decorator:
    return click.option(
        "--draft", metavar="MODEL|SHARE", help="SpecPrefill's draft: a model, or a share of the model's layers."
    )
