"""Prefill strategies by name: `lazyllm`, `lazyllm:0.5`, `superposition:2`, `kv-prediction:FOLDER@0.15`.

LazyLLM takes a schedule in place of a share, as `parse_schedule` in pruning.py reads it.

Neither MLX nor a strategy is imported before one is built, so that the command line can list them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.errors import InvalidOptionError

if TYPE_CHECKING:
    from russet.engine.prefill.base import Prefill


@dataclass(frozen=True)
class Strategy:
    """One entry of the list: `settings` are the names it takes, the first of which may follow the colon.

    `price` says in a few words what is approximate about it; it is empty for the exact one.
    """

    build: Callable[..., Prefill]
    settings: tuple[str, ...]
    price: str = ""


def parse(text: str, **settings: Any) -> Prefill:
    """The strategy that `NAME` or `NAME:VALUE` stands for; settings that are None count as not given.

    Settings: `keep` (share of the prompt, or number of documents for superposition), `draft` (a model, or a share of
    the base's layers), `predictor` (a name or a folder), `documents` (a document cache's folder).
    Raises InvalidOptionError for a name, a setting or a value that does not fit, and what building one raises.
    """
    name, colon, value = text.partition(":")
    strategy = find(name)
    given = {key: setting for key, setting in settings.items() if setting is not None}
    if colon:
        key = strategy.settings[0] if strategy.settings else None
        if key is None or not value:
            raise InvalidOptionError(f"{text!r} is no prefill strategy; {_takes(name, strategy)}.")
        if key in given:
            raise InvalidOptionError(f"{text!r} names its {key} already, but {given[key]!r} was given too; drop one.")
        given[key] = value
    for key in given:
        if key not in strategy.settings:
            takers = [other for other, entry in STRATEGIES.items() if key in entry.settings]
            raise InvalidOptionError(f"{name} prefill takes no {key}; it is a setting of {', '.join(takers)}.")
    return strategy.build(**given)


def find(name: str) -> Strategy:
    """The entry of a name; InvalidOptionError lists what there is, and a near one first."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    near = difflib.get_close_matches(name, STRATEGIES, n=1)
    meant = f"did you mean {near[0]}? There are" if near else "there are"
    raise InvalidOptionError(f"There is no prefill strategy {name!r}; {meant} {', '.join(STRATEGIES)}.")


def _takes(name: str, strategy: Strategy) -> str:
    return f"write {name}:{strategy.settings[0].upper()} or {name}" if strategy.settings else f"{name} stands alone"


def _exact() -> Prefill:
    from russet.engine.prefill.exact import Exact

    return Exact()


def _lazyllm(keep: float | str | None = None) -> Prefill:
    from russet.engine.prefill.lazyllm import LazyLLM
    from russet.engine.prefill.pruning import parse_schedule

    if keep is None:
        return LazyLLM()
    schedule = parse_schedule(str(keep))
    return LazyLLM(keep=_share(keep)) if schedule is None else LazyLLM(schedule=schedule)


def _specprefill(keep: float | str | None = None, draft: str | float | None = None) -> Prefill:
    from russet.engine.prefill.specprefill import SpecPrefill

    # Checked before a draft model is loaded.
    share: dict[str, Any] = {} if keep is None else {"keep": _share(keep)}
    SpecPrefill(**share)
    return SpecPrefill(**share, draft=None if draft is None else _draft(draft))


def _draft(draft: str | float) -> Any:
    """A share of the base's own layers, or a model's decoder."""
    try:
        share = float(draft)
    except ValueError:
        from russet.models.download import resolve
        from russet.models.loading import load_decoder

        return load_decoder(resolve(str(draft)))
    if not 0 < share <= 1:
        raise InvalidOptionError(f"draft is {draft}; a share of the model's layers is above 0 and at most 1.")
    return share


def _kv_prediction(predictor: str | Path | None = None, keep: float | str | None = None) -> Prefill:
    from russet.engine.prefill.kv_prediction import KVPrediction

    if predictor is None:
        raise InvalidOptionError("kv-prediction needs a predictor; give the folder of one.")
    predictor, keep = _with_share(str(predictor), keep)
    return KVPrediction(predictor) if keep is None else KVPrediction(predictor, keep=_share(keep, zero=True))


def _with_share(text: str, keep: float | str | None) -> tuple[str, float | str | None]:
    """`PREDICTOR@KEEP` in its two parts, so that one comparison can hold several shares; a folder may be called so."""
    predictor, at, share = text.rpartition("@")
    if not at or Path(text).expanduser().exists():
        return text, keep
    if not share:
        raise InvalidOptionError(f"{text!r} has no share behind its @; write {predictor}@0.15 or {predictor}.")
    if keep is not None:
        raise InvalidOptionError(f"{text!r} names its keep already, but {keep!r} was given too; drop one.")
    return predictor, share


def _superposition(keep: float | str | None = None, documents: Path | None = None) -> Prefill:
    from russet.engine.prefill.document_cache import DocumentCache
    from russet.engine.prefill.superposition import Superposition
    from russet.engine.prefix_store import size_limit

    number = 2.0 if keep is None else _number(keep)
    if number is None or not number.is_integer() or number < 1:
        raise InvalidOptionError(f"keep is {keep}; for superposition it is a number of documents, 1 or more.")
    cache = None if documents is None else DocumentCache(documents, max_bytes=max(1, size_limit()))
    return Superposition(keep=int(number), documents=cache)


def _share(value: float | str, zero: bool = False) -> float:
    share = _number(value)
    if share is None or not 0 <= share <= 1 or not (share or zero):
        least = "from 0 to 1" if zero else "above 0 and at most 1"
        raise InvalidOptionError(f"keep is {value}; it is a share of the prompt, {least}.")
    return share


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


STRATEGIES = {
    "exact": Strategy(_exact, ()),
    "lazyllm": Strategy(_lazyllm, ("keep",), "its later layers skip what the end of the prompt hardly attends to"),
    "kv-prediction": Strategy(
        _kv_prediction, ("predictor", "keep"), "its keys and values are predicted from a smaller model's"
    ),
    "specprefill": Strategy(_specprefill, ("keep", "draft"), "it skips the parts of the prompt that a draft ranks low"),
    "superposition": Strategy(_superposition, ("keep", "documents"), "documents do not see each other, and few stay"),
}
