"""`russet generate`: one prompt in, its text or one JSON object out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.options import load_model, model_options, sampling_options, sampling_overrides

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.reply import Reply


@click.command()
@model_options
@click.option("-p", "--prompt", metavar="TEXT", required=True, help="The prompt; - reads standard input.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, counts and timings.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print text as it comes.")
@sampling_options
def command(
    model: str,
    dtype: str | None,
    kv_bits: str | None,
    prompt: str,
    system: str | None,
    raw: bool,
    as_json: bool,
    stream: bool,
    **sampling: Any,
) -> None:
    """Generate text from one prompt.

    Decoding is greedy unless --temp is given. Standard output holds the text, or with --json the object, and
    nothing else.
    """
    if raw and system is not None:
        raise click.UsageError("--raw leaves no place for --system: put that text into the prompt.")
    options = sampling_overrides(sampling)
    content = _content(prompt)
    loaded = load_model(model, dtype, kv_bits)
    if as_json:
        reply = loaded.generate(content, raw=raw, system=system, **options)
        click.echo(json.dumps(_as_dict(loaded, reply), ensure_ascii=False, allow_nan=False))
    elif stream:
        _print(piece.text for piece in loaded.stream(content, raw=raw, system=system, **options))
    else:
        _print([loaded.generate(content, raw=raw, system=system, **options).text])


def _content(prompt: str) -> str:
    from russet.engine.cli.stdin import piped_text

    if prompt != "-":
        return prompt
    piped = piped_text()
    return sys.stdin.read() if piped is None else piped


def _print(texts: Iterable[str]) -> None:
    from russet.engine.cli.replies import reply_view

    view = reply_view(plain=True)
    try:
        for text in texts:
            view.feed(text)
    finally:
        view.finish()


TIMINGS = ("load_s", "ttft_s", "prefill_s", "prefill_tps", "decode_tps")


def _as_dict(model: Model, reply: Reply) -> dict[str, Any]:
    timings = reply.timings
    return {
        "text": reply.text,
        "prompt_tokens": reply.prompt_tokens,
        "tokens": len(reply.tokens),
        "finish_reason": reply.finish_reason,
        "exact": reply.exact,
        # Microseconds: a clock's digits beyond them are noise.
        "timings": {name: round(getattr(timings, name), 6) for name in TIMINGS},
        "peak_memory_bytes": reply.peak_memory_bytes,
        "model": model.name,
        "strategy": reply.strategy,
        "token_ids": list(reply.tokens),
    }
