"""Questions that a sentence answers in its own words, found by rules: no model is asked."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Answered = tuple[str, str]
"""A question, and the words of the sentence that answer it."""

_NUMBER = r"\d[\d,.]*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred"
_YEAR = re.compile(r"\b[Ii]n (1[0-9]{3}|20[0-9]{2})\b")
_COUNT = re.compile(rf"\b({_NUMBER}) ((?:[a-z]+ )?[a-z]+s)\b")
_NAME = re.compile(r"\b([A-Z][a-z]+(?: (?:of|the|de|van|[A-Z][a-z.]+))* [A-Z][a-z]+|[A-Z][a-z]{3,})\b")
_PLACE = re.compile(r"\b((?:in|at|near|from) (?:the )?[A-Z][a-z]+(?:,? [A-Z][a-z]+){0,2})\b")
_IS = re.compile(
    r"((?:The |An? )?[\w' ,()-]{3,60}?) (is|are|was|were) ((?:the|an?|one of|in|on|at|\w+ed)\b[^.;]{8,120})"
)
_DID = re.compile(
    r"((?:[A-Z][\w'.-]+ ?(?:of |the |de )?){1,5}) ((?:[a-z]+ed|was|were|is|has|had|won|became|wrote|built|made|led|took"
    r"|gave|began|held|went|came|said|saw|found|left|met|knew|told|asked) [^.;]{8,120})"
)
_WHY = re.compile(r"(.{15,140}?),? (because|so that|in order to|by) (.{8,100}?)[.;]")
_CLOSING = ' .!?"\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}'
_POINTERS = frozenset(["He", "She", "It", "They", "The", "This", "I", "We", "But", "And", "There", "That", "In"])
_LEAST = 20
"""Characters of a sentence that must be left when the answer is taken out."""


def asked(sentence: str, rng: np.random.Generator) -> Answered | None:
    """One of the questions that the rules find; None where they find none."""
    body = sentence.rstrip('.!?"”’ ')
    found = [pair for rule in _RULES for pair in rule(body, rng)]
    return found[rng.integers(len(found))] if found else None


def _year(body: str, rng: np.random.Generator) -> list[Answered]:
    ways = ("In what year did this happen: {}?", "When was it that {}?", "In which year: {}?")
    return _without(body, _YEAR.search(body), ways, rng)


def _place(body: str, rng: np.random.Generator) -> list[Answered]:
    ways = ("Where was it that {}?", "Where: {}?", "In what place did this happen: {}?")
    return _without(body, _PLACE.search(body), ways, rng)


def _without(body: str, match: re.Match[str] | None, ways: tuple[str, ...], rng: np.random.Generator) -> list[Answered]:
    """The sentence without the match, which is asked for."""
    if match is None:
        return []
    rest = re.sub(r"\s+", " ", body[: match.start()] + body[match.end() :]).strip(" ,")
    return [(ways[rng.integers(len(ways))].format(_lower(rest)), match[1])] if len(rest) > _LEAST else []


def _how_many(body: str, rng: np.random.Generator) -> list[Answered]:
    match = _COUNT.search(body)
    if match is None:
        return []
    after = body[match.end() :].strip(" ,")
    question = f"How many {match[2]} {after}" if 0 < len(after) < 80 else f"How many {match[2]}"
    return [(f"{question}?", match[1]), (f"{question}?", f"{match[1]} {match[2]}")]


def _what_is(body: str, rng: np.random.Generator) -> list[Answered]:
    match = _IS.match(body)
    if match is None:
        return []
    subject, verb, rest = match.groups()
    return [(f"What {verb} {_lower(subject)}?", rest), (f"Who or what {verb} {rest}?", subject)]


def _who(body: str, rng: np.random.Generator) -> list[Answered]:
    match = _DID.match(body)
    if match is None or match[1].strip() in _POINTERS:
        return []
    name, deed = match[1].strip(), match[2]
    return [(f"Who {deed}?", name), (f"What is said to have happened with {name}?", deed)]


def _why(body: str, rng: np.random.Generator) -> list[Answered]:
    match = _WHY.match(body + ".")
    if match is None:
        return []
    way = "Why is it that" if match[2] in ("because", "so that") else "How is it that"
    return [(f"{way} {_lower(match[1])}?", f"{match[2]} {match[3]}")]


def _name(body: str, rng: np.random.Generator) -> list[Answered]:
    names = [match for match in _NAME.finditer(body) if match.start()]
    if not names:
        return []
    match = names[rng.integers(len(names))]
    return [(f"Which name is missing: {body[: match.start()]}____{body[match.end() :]}?", match[1])]


def _lower(text: str) -> str:
    """Without the capital of a sentence's beginning, unless it is a name's, I, or an abbreviation."""
    return text if re.match(r"I\b|[A-Z]{2}|[A-Z]\w+ [A-Z]", text) else text[0].lower() + text[1:]


_RULES: tuple[Callable[[str, np.random.Generator], list[Answered]], ...] = (
    _year, _place, _how_many, _what_is, _who, _why, _name,
)  # fmt: skip
