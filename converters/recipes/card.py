"""The model card of a recipe's result, as Markdown beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.engine.storage import writing

if TYPE_CHECKING:
    from russet.converters.recipes.run import Report

CARD = "README.md"
TABLES = ("quality", "speed")
"""What has a table of its own."""


def write_card(report: Report, folder: Path) -> None:
    """Write the card; raises StorageError."""
    with writing(folder):
        (folder / CARD).write_text(card(report), encoding="utf-8")


def card(report: Report) -> str:
    """Data, tokens, seed, settings, and what was measured before and after."""
    settings = report.settings
    teacher = f", taught by {report.teacher}" if report.teacher else ""
    lines = [
        f"# {report.recipe} of {report.source}",
        "",
        f"Made by `russet recipe {report.recipe}` from {report.source}{teacher}: {report.steps:,} steps of "
        f"{settings['batch']} x {settings['length']} tokens ({report.tokens / 1e6:.1f} M tokens) of {report.data}, "
        f"seed {settings['seed']}, in {report.dtype} on {report.device}, {report.seconds / 60:.1f} minutes, "
        f"{report.tokens_per_second:,.0f} tokens a second.",
        "",
        f"Learning rate {settings['rate']:g}, loss {_pairs(report.objective)}"
        + (f", options {_pairs(report.options)}" if report.options else "")
        + ". [curve.csv](curve.csv) and curve.png show the training, [recipe.json](recipe.json) has every number.",
        "",
        *("```sh", *command(report), "```", ""),
        "| held-out text | before | after |",
        "|---|---|---|",
        *(_row(name, report) for name in {**report.before, **report.after} if name not in TABLES),
        "",
    ]
    lines += _speed(report)
    lines += _quality(report)
    return "\n".join(lines)


def command(report: Report) -> list[str]:
    """The command that makes it again, in lines that a shell joins."""
    sizes = ("tokens", "batch", "length", "rate", "decay", "ema", "seed")
    given = [f"--{name} {report.settings[name]}" for name in sizes]
    weights = [f"--{name} {value:g}" for name, value in report.objective.items()]
    teacher = [f"--teacher {report.teacher}"] if report.teacher else []
    options = [f"-o {name}={value}" for name, value in report.options.items()]
    words = f"russet recipe {report.recipe} {report.source} DST --data {report.data}"
    groups = (given, [*weights, *teacher, f"--dtype {report.dtype}"], options)
    lines = [words, *("  " + " ".join(group) for group in groups if group)]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _row(name: str, report: Report) -> str:
    return f"| {name} | {_number(report.before.get(name))} | {_number(report.after.get(name))} |"


def _speed(report: Report) -> list[str]:
    before, after = report.before.get("speed"), report.after.get("speed")
    if not before or not after:
        return []
    names = {"prefill_tps": "prefill", "decode_tps": "decode"}
    rows = [
        f"| {names[key]} | {before[key]:.1f} | {after[key]:.1f} | {after[key] / before[key]:.2f} |" for key in names
    ]
    heading = f"| tokens a second, {before['prompt_tokens']} tokens of prompt | source | result | ratio |"
    return [heading, "|---|---|---|---|", *rows, "", "Medians of five runs each, by turns.", ""]


def _quality(report: Report) -> list[str]:
    before, after = report.before.get("quality") or {}, report.after.get("quality") or {}
    if not before and not after:
        return []
    rows = ["| `russet bench quality` | before | after |", "|---|---|---|"]
    for task in {**before, **after}:
        for metric in {**before.get(task, {}), **after.get(task, {})}:
            cells = [_estimate(side.get(task, {}).get(metric)) for side in (before, after)]
            rows.append(f"| {task}, {metric} | {cells[0]} | {cells[1]} |")
    return [*rows, "", "95 % intervals in brackets.", ""]


def _estimate(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
