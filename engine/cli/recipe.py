"""`russet recipe`: a model folder in, one that is fitted to a technique out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.bench_prefill import Names
from russet.engine.errors import InvalidOptionError

if TYPE_CHECKING:
    from russet.converters.recipes.base import Recipe
    from russet.converters.recipes.listener import Listener
    from russet.converters.recipes.run import Report

NAMES = ("relufy", "share_kv", "qat2", "combined", "kv_predictor", "prune", "control")


class Tokens(click.ParamType):
    """A number of tokens, as in 40M or 500k."""

    name = "TOKENS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        factor = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}.get(value[-1:].lower(), 1)
        try:
            tokens = int(float(value if factor == 1 else value[:-1]) * factor)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a number of tokens, as in 40M or 500k.", param, ctx)
        if tokens < 1:
            self.fail(f"{value} tokens are too few to train on.", param, ctx)
        return tokens


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Text (*.txt, *.jsonl) or token ids (*.bin, val.bin).",
)
@click.option("--tokens", type=Tokens(), required=True, help="How many tokens to train on, as in 40M.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Sequences a step.")
@click.option("--length", type=click.IntRange(2), default=1024, show_default=True, help="Tokens a sequence.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), default=3e-4, show_default=True, help="Peak learning rate."
)
@click.option("--decay", type=click.FloatRange(min=0), help="Weight decay.  [default: 0.01]")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Export an average of weights with this decay.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides every random choice.")
@click.option("--teacher", metavar="MODEL", help="Distil from this model.  [default: SRC]")
@click.option("--kl", type=click.FloatRange(min=0), help="Weight of the KL divergence from the teacher.")
@click.option("--ce", type=click.FloatRange(min=0), help="Weight of the cross-entropy with the text.")
@click.option("--hidden", type=click.FloatRange(min=0), help="Weight of the distance of hidden states.")
@click.option(
    "-o", "--option", "options", metavar="KEY=VALUE", multiple=True, help="A setting of the recipe, as listed above."
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Compute in.  [default: bfloat16 on a GPU]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in DST.run, bit for bit.")
@click.option(
    "--checkpoint-s", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds between checkpoints."
)
@click.option(
    "--held-out", type=Tokens(), default=65536, show_default=True, help="Tokens of val.bin to measure before and after."
)
@click.option(
    "--eval",
    "eval_data",
    type=click.Path(path_type=Path),
    help="Evaluation data: run `bench quality` before and after.",
)
@click.option(
    "--eval-tasks", type=Names(), default="wikitext,lambada,arc_easy,piqa", show_default=True, help="Its tasks."
)
@click.option("--eval-limit", type=click.IntRange(1), default=100, show_default=True, help="Rows of each task.")
@click.option("--speed", is_flag=True, help="Time prefill and decoding of source and result by turns.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(name: str, src: str, dst: Path, as_json: bool, **given: Any) -> None:
    """Fine-tune the model SRC by a recipe into the new model folder DST.

    \b
    relufy        ReLU gates, made sparse (stage, shift, soften, sparsity, penalty, anneal)
    share_kv      the last 3/8 of the layers read an earlier layer's keys and values (share, slots, blend, trained)
    qat2          balanced 2-bit weights and a 4-bit embedding (group, clip, clip_rate, embedding_bits, ramp, adapter)
    combined      the three above in one model (bits, and their settings but stage, shift and trained)
    kv_predictor  maps from half of the layers to the keys and values of all (keep, layers, inputs, trained, near,
                  least, real, l1, auxiliary)
    prune         a share of the layers only, to compare with kv_predictor (keep)
    control       no change: what more training on the same tokens does by itself

    In brackets are the settings for -o. SRC is a model folder or a name of the catalog. A run keeps its checkpoints in
    DST.run until it is done. docs/recipes.md has what each recipe does and what it reached.
    """
    from russet.models.download import resolve

    run = _run(name, Path(resolve(src)), dst, given)
    with _listener() as listener:
        report = run(listener)
    click.echo(json.dumps(asdict(report)) if as_json else _summary(report, dst))


def _run(name: str, src: Path, dst: Path, given: dict[str, Any]) -> Any:
    from russet.converters.recipes import recipe_class
    from russet.converters.recipes.run import Evaluation, Run
    from russet.converters.recipes.trainer import Settings
    from russet.models.download import resolve

    found = recipe_class(name)
    settings = {key: given[key] for key in ("tokens", "batch", "length", "rate", "decay", "ema", "seed")}
    data = given["eval_data"]
    evaluation = Evaluation(
        given["held_out"], data, tuple(given["eval_tasks"]), limit=given["eval_limit"], speed=given["speed"]
    )
    teacher = given["teacher"]
    return Run(
        _recipe(found, given),
        src,
        dst,
        given["data"],
        Settings(**{key: value for key, value in settings.items() if value is not None}),
        evaluation,
        teacher=Path(resolve(teacher)) if teacher else None,
        dtype=given["dtype"],
        resume=given["resume"],
        checkpoint_s=given["checkpoint_s"],
    )


def _recipe(found: type[Recipe], given: dict[str, Any]) -> Recipe:
    from dataclasses import replace

    weights = {key: given[key] for key in ("kl", "ce", "hidden") if given[key] is not None}
    return found(parse_options(found, given["options"]), replace(found.objective, **weights))


def parse_options(found: type[Recipe], pairs: tuple[str, ...]) -> Any:
    """A recipe's options out of `key=value`; raises InvalidOptionError."""
    known = {field.name: type(getattr(found.options_type(), field.name)) for field in fields(found.options_type)}
    values = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in known:
            names = ", ".join(known) or "none"
            raise InvalidOptionError(f"{found.name} has no setting {key!r}; it has {names}.")
        try:
            values[key] = _value(text, known[key])
        except ValueError:
            raise InvalidOptionError(f"{key} is {text!r}; {known[key].__name__} is expected.") from None
    return found.options_type(**values)


def _value(text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return kind(text)


@contextmanager
def _listener() -> Iterator[Listener]:
    from russet.engine.cli.training import BarListener, LineListener

    listener = BarListener() if sys.stderr.isatty() else LineListener()
    try:
        yield listener
    finally:
        listener.finish()


def _summary(report: Report, dst: Path) -> str:
    before, after = report.before.get("perplexity"), report.after.get("perplexity")
    scored = f"; perplexity of held-out text {before:.2f} before, {after:.2f} after" if before and after else ""
    return (
        f"Wrote {dst}: {report.recipe} of {report.source}, {report.steps:,} steps, {report.tokens:,} tokens "
        f"in {report.seconds:,.0f} s{scored}. Its README.md and recipe.json have the rest."
    )
