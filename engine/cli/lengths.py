"""A list of numbers of tokens as an option's value."""

from __future__ import annotations

from typing import Any

import click


class Lengths(click.ParamType):
    """`N,N,...`: numbers of tokens, each at least 1."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            lengths = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            lengths = ()
        if not lengths or min(lengths) < 1:
            self.fail(f"{value!r} is not a list of whole numbers above 0, as in 512,2048.", param, ctx)
        return lengths
