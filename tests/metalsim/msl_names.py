"""The names that a header leaves to what comes after it: macros, types, functions and constants."""

from __future__ import annotations

import re

from msl_to_cpp import strip_comments

_MACRO = r"^[ \t]*#[ \t]*{}[ \t]+(\w+)"


def declared_names(source: str) -> set[str]:
    """What a header declares outside braces; names in a namespace are not among them, and overloads are one name."""
    text = strip_comments(source)
    macros = set(re.findall(_MACRO.format("define"), text, re.M)) - set(re.findall(_MACRO.format("undef"), text, re.M))
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", text, flags=re.M)
    names = (_name(_without_template(declaration)) for declaration in _without_bodies(text).split(";"))
    return macros | {name for name in names if name}


def _without_bodies(text: str) -> str:
    """The text outside braces; a closing brace ends a declaration."""
    kept, depth = "", 0
    for character in text:
        depth += character == "{"
        if depth == 0:
            kept += character
        if character == "}":
            depth -= 1
            kept += ";" if depth == 0 else ""
    return kept


def _without_template(declaration: str) -> str:
    """A declaration without its `template <...>`, and with specialisations by their plain name."""
    text = declaration.strip()
    previous = None
    while previous != text:
        previous, text = text, re.sub(r"<[^<>]*>", "", text)
    return re.sub(r"\btemplate\b", "", text).strip()


def _name(declaration: str) -> str:
    if re.match(r"namespace\b", declaration):
        return ""
    if found := re.match(r"(?:struct|enum|union|class|using)\s+(?:alignas\s*\(\w+\)\s*)?(\w+)", declaration):
        return found.group(1)
    head = re.split(r"[(=\[]", declaration)[0]
    words = re.findall(r"\w+", head)
    return words[-1] if len(words) > 1 else ""
