"""The jinja2 environment that chat templates run in: sandboxed, bounded, with the helpers they expect.

Helpers follow `transformers.utils.chat_template_utils`. Beyond jinja2's sandbox (no private attributes, no changes to
what is passed in, ranges of at most 100,000), loops and macros share one budget of steps, and powers and repeated
sequences are bounded. A template that keeps doubling one string can still use up memory; it reaches nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 300_000
MAX_RENDERED_CHARACTERS = 1 << 26
MAX_REPEATED_LENGTH = 1 << 24
MAX_EXPONENT = 64


class SandboxedTemplate:
    """A compiled template. Raises jinja2.TemplateSyntaxError."""

    def __init__(self, source: str):
        self._environment = _BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self._environment.filters["tojson"] = _tojson
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = _strftime_now
        self._template = self._environment.from_string(source)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text; raises OverflowError past a bound, and whatever else the template does."""
        self._environment.steps_left = MAX_STEPS
        pieces: list[str] = []
        room = MAX_RENDERED_CHARACTERS
        for piece in self._template.generate(**variables):
            room -= len(piece)
            if room < 0:
                raise OverflowError(f"more than {MAX_RENDERED_CHARACTERS} characters of output")
            pieces.append(piece)
        return "".join(pieces)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})
    steps_left = MAX_STEPS

    def count_step(self) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise OverflowError(f"more than {MAX_STEPS} steps in loops and macros")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every loop's body and every macro begins by counting a step."""
        template = super()._parse(source, name, filename)
        for node in template.find_all((nodes.For, nodes.Macro)):
            step = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > MAX_EXPONENT:
            raise OverflowError(f"an exponent of more than {MAX_EXPONENT}")
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    _check_length(len(sequence) * count)
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _check_length(length: int) -> None:
    if length > MAX_REPEATED_LENGTH:
        raise OverflowError(f"a sequence repeated to more than {MAX_REPEATED_LENGTH} items")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, it leaves `<`, `>`, `&` and `'` as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
