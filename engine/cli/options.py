"""The options that several commands share, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from russet.engine.errors import InvalidOptionError
from russet.models.runtimes import COMPUTE_UNITS

if TYPE_CHECKING:
    from russet.engine.api import Model

DEFAULT_MODEL = "smollm2-135m"


class LogitBias(click.ParamType):
    """`ID=VALUE`: a token and what is added to its logit."""

    name = "ID=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not a token number, an equals sign and a number, as in 42=-1.5.", param, ctx)


MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        help="Catalog name, model folder or package, GGUF file, or hub repository.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Precision to compute in.  [default: what suits the device]",
    ),
    click.option("--kv-bits", type=click.Choice(["8", "16"]), help="Bits of stored keys and values; 8 is lossy."),
    click.option(
        "--compute-units",
        type=click.Choice(COMPUTE_UNITS),
        help="What a package for Apple's runtimes may run on: the CPU (cpu), and the GPU or the Neural Engine (ne).",
    ),
)

SAMPLING_OPTIONS = (
    click.option(
        "--max-tokens", type=int, metavar="N", help="Stop after N tokens.  [default: when the context is full]"
    ),
    click.option("--temp", "temperature", type=float, metavar="T", help="Temperature; 0 is greedy."),
    click.option("--top-k", type=int, metavar="K", help="Sample among the K likeliest tokens; 0 is all."),
    click.option("--top-p", type=float, metavar="P", help="Sample among the likeliest that sum to P."),
    click.option("--min-p", type=float, metavar="P", help="Drop tokens under P times the likeliest."),
    click.option("--repetition-penalty", type=float, metavar="R", help="Above 1 discourages repetition."),
    click.option("--seed", type=int, metavar="S", help="Make sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    click.option("--logit-bias", type=LogitBias(), multiple=True, help="Add VALUE to the logit of token ID."),
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model is loaded, and how: `model`, `dtype`, `kv_bits`, `compute_units`."""
    return with_options(function, MODEL_OPTIONS)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `GenerationOptions`, each None or empty where the user gave none."""
    return with_options(function, SAMPLING_OPTIONS)


def with_options(function: Callable[..., Any], options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    """Add options to a command, shown in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def sampling_overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `GenerationOptions` that the user set, checked.

    Raises click.UsageError for a value outside its range, before a model is loaded.
    """
    from russet.engine.options import GenerationOptions

    overrides = {name: value for name, value in given.items() if value is not None and value != ()}
    if "logit_bias" in overrides:
        overrides["logit_bias"] = dict(overrides["logit_bias"])
    try:
        GenerationOptions(**overrides)
    except InvalidOptionError as error:
        raise click.UsageError(str(error)) from error
    return overrides


def load_model(
    model: str,
    dtype: str | None,
    kv_bits: str | None,
    prefix_cache: bool = False,
    compute_units: str | None = None,
) -> Model:
    """`russet.load` with a progress bar on a terminal."""
    import russet
    from russet.engine.cli.console import terminal_progress

    with terminal_progress() as progress:
        return russet.load(
            model,
            dtype=dtype,
            kv_bits=int(kv_bits) if kv_bits else None,
            prefix_cache=prefix_cache,
            compute_units=compute_units,
            progress=progress,
        )
