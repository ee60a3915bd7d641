"""`russet chat` without a terminal; test_terminal.py has the other half."""

from __future__ import annotations

import pytest


def test_a_piped_question_is_answered_once(cli) -> None:
    result = cli("chat", input="say **hi**\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "**hi**\n", "")


def test_prompt_and_piped_text_are_joined(cli, loaded) -> None:
    cli("chat", "-p", "summarise", input="first\nsecond\n")
    assert loaded[0].sessions[0].messages[0] == {"role": "user", "content": "summarise\n\nfirst\nsecond"}


def test_stats_go_to_stderr_when_asked(cli) -> None:
    result = cli("chat", "-p", "cut one two", "--stats")
    assert result.stdout == "one two\n"
    line = "2 tok | TTFT 0.21 s | prefill 3 120 tok/s | decode 61.4 tok/s | cached 380 | 2.1 GB | stopped: length"
    assert " ".join(result.stderr.split()) == line


@pytest.mark.parametrize("arguments", [[], ["-p", ""], ["-p", " \n"]])
def test_nothing_to_answer_is_an_error_before_loading(cli, loaded, arguments: list[str]) -> None:
    result = cli("chat", *arguments, input=" \n")
    assert (result.exit_code, loaded) == (1, [])
    assert result.stderr.startswith("russet: There is nothing to answer")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {"temperature": 0.7, "top_p": 0.9}),
        (["--top-p", "0.5"], {"temperature": 0.7, "top_p": 0.5}),
        (["--temp", "0"], {"temperature": 0.0}),
        (["--temp", "1", "--top-p", "0.5", "--seed", "3"], {"temperature": 1.0, "top_p": 0.5, "seed": 3}),
    ],
)
def test_replies_are_sampled_unless_a_temperature_is_given(cli, loaded, arguments, options) -> None:
    cli("chat", "-p", "x", *arguments)
    assert loaded[0].sessions[0].options == options


def test_the_default_model_and_the_system_prompt(cli, loaded) -> None:
    cli("chat", "-p", "x", "--system", "Be brief.")
    assert loaded[0].name == "smollm2-135m"
    assert loaded[0].sessions[0].system == "Be brief."


def test_control_characters_pass_in_a_pipe(cli) -> None:
    assert cli("chat", "-p", "say a\x1b[1mb").stdout == "a\x1b[1mb\n"
