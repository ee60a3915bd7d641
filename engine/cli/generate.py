"""`russet generate`: one prompt in, its text or one JSON object out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.options import load_model, model_options, sampling_options, sampling_overrides
from russet.engine.cli.prefill import chosen_prefill, prefill_options, show_note, show_price
from russet.engine.prefill.strategies import STRATEGIES

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.prompt import Prompt
    from russet.engine.reply import Piece, Reply


@click.command()
@model_options
@click.option("-p", "--prompt", metavar="TEXT", required=True, help="The prompt; - reads standard input.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option(
    "--documents",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A document that the prompt asks about, or a .jsonl file of them; may be repeated.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, counts and timings.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print text as it comes.")
@prefill_options(list(STRATEGIES))
@sampling_options
def command(
    model: str,
    dtype: str | None,
    kv_bits: str | None,
    compute_units: str | None,
    prompt: str,
    system: str | None,
    documents: tuple[Path, ...],
    raw: bool,
    as_json: bool,
    stream: bool,
    prefill: str,
    keep: float | None,
    draft: str | None,
    predictor: str | None,
    prefix_cache: bool,
    **sampling: Any,
) -> None:
    """Generate text from one prompt.

    Decoding is greedy unless --temp is given. Standard output holds the text, or with --json the object, and
    nothing else.
    """
    if raw and system is not None:
        raise click.UsageError("--raw leaves no place for --system: put that text into the prompt.")
    if prefill == "superposition" and not documents:
        raise click.UsageError("--prefill superposition needs --documents.")
    settings: dict[str, Any] = {"raw": raw, "system": system, **sampling_overrides(sampling)}
    strategy = chosen_prefill(prefill, {"keep": keep, "draft": draft, "predictor": predictor}, prefix_cache)
    if strategy is not None:
        settings["prefill"] = strategy
    content = _content(prompt, documents)
    show_price(prefill)
    loaded = load_model(model, dtype, kv_bits, prefix_cache, compute_units)
    if as_json or not stream:
        reply = loaded.generate(content, **settings)
        show_note(reply.note)
        if as_json:
            click.echo(json.dumps(_as_dict(loaded, reply), ensure_ascii=False, allow_nan=False))
        else:
            _print([reply.text])
    else:
        notes: list[str] = []
        _print(_texts(loaded.stream(content, **settings), notes))
        # Behind the line that the reply ends on.
        for note in notes:
            show_note(note)


def _texts(pieces: Iterable[Piece], notes: list[str]) -> Iterator[str]:
    for piece in pieces:
        yield piece.text
        if piece.reply is not None:
            notes.append(piece.reply.note)


def _content(prompt: str, documents: tuple[Path, ...]) -> str | Prompt:
    from russet.engine.cli.stdin import piped_text

    if prompt == "-":
        piped = piped_text()
        prompt = sys.stdin.read() if piped is None else piped
    if not documents:
        return prompt
    from russet.engine.cli.documents import read_documents
    from russet.engine.prompt import Prompt

    return Prompt(documents=tuple(read_documents(documents)), query=prompt)


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
        "strategy": reply.strategy,
        "note": reply.note,
        "layer_tokens": list(reply.layer_tokens),
        "revived": reply.revived,
        "cached_tokens": reply.timings.cached_tokens,
        # Microseconds: a clock's digits beyond them are noise.
        "timings": {name: round(getattr(timings, name), 6) for name in TIMINGS},
        "peak_memory_bytes": reply.peak_memory_bytes,
        "model": model.name,
        "token_ids": list(reply.tokens),
    }
