"""`russet chat`: a conversation in the terminal, or one answer in a pipe."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from russet.engine.cli.options import load_model, model_options, sampling_options, sampling_overrides
from russet.engine.cli.prefill import CHAT_STRATEGIES, chosen_prefill, prefill_options, show_price
from russet.engine.errors import EmptyPromptError, RussetError

if TYPE_CHECKING:
    from russet.engine.cli.conversation import Conversation
    from russet.engine.cli.prompt import PromptReader


@click.command()
@model_options
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this once and exit; piped text is put after it.")
@click.option("--plain", is_flag=True, help="Show replies as they are, not as Markdown.")
@click.option("--stats", is_flag=True, help="Print the stats line to standard error in pipes too.")
@click.option("--history/--no-history", default=True, help="Keep what you type in a private history file.")
@prefill_options(CHAT_STRATEGIES)
@sampling_options
def command(
    model: str,
    dtype: str | None,
    kv_bits: str | None,
    compute_units: str | None,
    system: str | None,
    prompt: str | None,
    plain: bool,
    stats: bool,
    history: bool,
    prefill: str,
    keep: float | None,
    draft: str | None,
    predictor: str | None,
    prefix_cache: bool,
    **sampling: Any,
) -> None:
    """Talk with a model.

    On a terminal this opens a conversation; /help there lists its commands. With -p, or with text piped in, the
    answer goes to standard output and nothing else does.

    Replies are sampled with temperature 0.7 and top-p 0.9 unless --temp is given.
    """
    from russet.engine.cli.console import aside
    from russet.engine.cli.conversation import Conversation
    from russet.engine.cli.replies import reply_view

    options = sampling_overrides(_with_chat_defaults(sampling))
    strategy = chosen_prefill(prefill, {"keep": keep, "draft": draft, "predictor": predictor}, prefix_cache)
    question = _question(prompt)
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    show_price(prefill)
    loaded = load_model(model, dtype, kv_bits, prefix_cache, compute_units)
    if on_terminal:
        aside(loaded.card)
    conversation = Conversation(
        model=loaded,
        session=loaded.session(system=system, prefill=strategy),
        options=options,
        view=partial(reply_view, plain=plain),
        show_stats=stats or on_terminal,
    )
    if question is None:
        _converse(conversation, history)
        return
    conversation.answer(question)
    if conversation.interrupted:
        raise KeyboardInterrupt


def _with_chat_defaults(sampling: dict[str, Any]) -> dict[str, Any]:
    if sampling["temperature"] is not None:
        return sampling
    top_p = 0.9 if sampling["top_p"] is None else sampling["top_p"]
    return {**sampling, "temperature": 0.7, "top_p": top_p}


def _question(prompt: str | None) -> str | None:
    """The one question of a run without a conversation: the prompt and what is piped in; None on a terminal.

    Raises EmptyPromptError where both are blank.
    """
    from russet.engine.cli.stdin import piped_text

    piped = piped_text()
    if prompt is None and piped is None:
        return None
    question = "\n\n".join(part for part in (prompt, (piped or "").rstrip("\n")) if part and part.strip())
    if not question:
        raise EmptyPromptError("There is nothing to answer: give a question with -p or on standard input.")
    return question


def _converse(conversation: Conversation, keep_history: bool) -> None:
    """Read and answer until the user leaves; raises KeyboardInterrupt at two Ctrl-C in a row."""
    from russet.engine.cli.prompt import PromptReader, open_history
    from russet.engine.paths import cache_root

    reader = PromptReader(open_history(cache_root() / "chat_history" if keep_history else None))
    while not conversation.leaving:
        click.echo(err=True)
        try:
            text = reader.read()
        except EOFError:
            return
        if text.strip():
            _take_turn(conversation, reader, text)


def _take_turn(conversation: Conversation, reader: PromptReader, text: str) -> None:
    from russet.engine.cli.slash import is_slash_command, run_slash_command

    conversation.interrupted = False
    try:
        if is_slash_command(text):
            run_slash_command(conversation, text)
        else:
            conversation.answer(text)
    except RussetError as error:
        click.echo(f"russet: {error}", err=True)
    reader.interrupted = conversation.interrupted
