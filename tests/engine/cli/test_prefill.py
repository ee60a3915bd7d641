"""The options of prefill strategies: what reaches the model, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from russet.engine.cli import prefill as options
from russet.engine.prompt import Prompt


def test_exact_prefill_is_what_the_model_does_by_itself(cli, loaded) -> None:
    cli("generate", "-p", "say x")
    assert "prefill" not in loaded[0].options
    assert loaded[0].load_options["prefix_cache"] is False
    cli("chat", "-p", "say x")
    assert loaded[1].sessions[0].prefill is None


def test_a_strategy_and_its_settings_reach_the_model(cli, loaded) -> None:
    arguments = ("-p", "say x", "--prefill", "specprefill", "--keep", "0.4", "--draft", "0.25")
    for command in ("generate", "chat"):
        assert cli(command, *arguments).stdout == "x\n"
    for strategy in (loaded[0].options["prefill"], loaded[1].sessions[0].prefill):
        assert (strategy.name, strategy.keep, strategy.draft) == ("specprefill", 0.4, 0.25)


def test_the_prefix_cache_is_opened_when_asked_for(cli, loaded) -> None:
    for command in ("generate", "chat"):
        cli(command, "-p", "say x", "--prefix-cache")
    assert [model.load_options["prefix_cache"] for model in loaded] == [True, True]


def test_documents_make_a_prompt_in_parts(cli, loaded, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("\ufeffFirst.", encoding="utf-8")
    lines.write_text('{"text": "Second.", "title": "x"}\n\n{"text": "Third."}\n', encoding="utf-8")
    asked: list[Prompt] = []
    monkeypatch.setattr("russet_cli_fakes.pieces_for", lambda prompt: asked.append(prompt) or iter(()))
    for extra in ([], ["--prefix-cache"]):
        cli(
            "generate", "-p", "Which?", "--prefill", "superposition", *extra, "--documents", plain, "--documents", lines
        )
    assert asked[0] == Prompt(documents=("First.", "Second.", "Third."), query="Which?")
    caches = [model.options["prefill"].documents for model in loaded]
    assert caches[0] is None and caches[1].folder == tmp_path / "cache" / "documents"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "a.jsonl, line 2, is not a JSON object with a text"),
        ("a.jsonl", b"plain", "a.jsonl, line 1, is not a JSON object with a text"),
        ("a.jsonl", b"[1]", "a.jsonl, line 1, is not a JSON object with a text"),
        ("a.txt", b" \n", "The files given as documents hold no text"),
        ("a.txt", b"x\xff", "a.txt is not UTF-8 text (byte 0xff at offset 1)"),
    ],
)
def test_documents_that_cannot_be_read_are_told_before_loading(
    cli, loaded, tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    result = cli("generate", "-p", "x", "--documents", tmp_path / name)
    assert result.exit_code == 1 and sentence in result.stderr and not loaded


@pytest.mark.parametrize("arguments", [["--json"], [], ["--no-stream"]])
def test_a_strategy_that_did_not_apply_is_told_on_stderr(cli, arguments: list[str]) -> None:
    result = cli("generate", "-p", "noted abc", *arguments)
    assert result.stderr == "russet: note: It does not apply to 3 letters.\n"
    assert "apply" not in result.stdout or json.loads(result.stdout)["note"].startswith("It does not")
    assert result.output in (result.stderr + result.stdout, result.stdout + result.stderr)  # not inside of a line


def test_a_conversation_tells_it_once(fakes, caplog: pytest.LogCaptureFixture) -> None:
    from russet.engine.cli.conversation import Conversation
    from russet.engine.cli.replies import PlainView

    model = fakes.FakeModel()
    chat = Conversation(model, model.session(), {}, view=lambda: PlainView(False), show_stats=False)
    with caplog.at_level("WARNING", "russet"):
        for text in ("say x", "noted abc", "noted abcd"):
            chat.answer(text)
    assert [record.getMessage() for record in caplog.records] == ["It does not apply to 3 letters."]


def test_a_lossy_strategy_names_its_price_on_a_terminal_only(capsys, monkeypatch) -> None:
    options.show_price("lazyllm")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    options.show_price("exact")
    assert capsys.readouterr().err == ""
    options.show_price("lazyllm")
    said = " ".join(capsys.readouterr().err.split())
    assert "lazyllm prefill is approximate" in said and "docs/prefill.md" in said


def test_a_conversation_offers_no_superposition(cli, loaded) -> None:
    result = cli("chat", "-p", "x", "--prefill", "superposition")
    assert result.exit_code == 2 and not loaded


def run_tiny(folder: Path, *arguments: str | Path) -> dict:
    from click.testing import CliRunner

    from russet.engine.cli import main

    command = ["generate", "-m", str(folder), "--raw", "--max-tokens", "2", "--json", *map(str, arguments)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["lazyllm", "specprefill"])
def test_a_real_reply_tells_what_was_computed(tiny_folder: Path, name: str) -> None:
    told = run_tiny(tiny_folder, "-p", "abcdefghij" * 30, "--prefill", name, "--keep", "0.3")
    assert (told["strategy"], told["exact"], told["note"]) == (name, False, "")
    assert len(told["layer_tokens"]) == 3 and 0 < told["layer_tokens"][1] < 300
    assert (told["revived"], told["cached_tokens"]) == (0, 0)


def test_documents_are_superposed_and_kept_on_disk(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"Document {i} is about something.")
    files = [argument for i in range(4) for argument in ("--documents", tmp_path / f"{i}.txt")]
    superposed = (*files, "-p", "Which?", "--prefill", "superposition", "--keep", "2")
    told = run_tiny(tiny_folder, *superposed)
    assert (told["strategy"], told["exact"], told["note"]) == ("superposition", False, "")
    assert not (tmp_path / "cache" / "documents").exists()
    run_tiny(tiny_folder, *superposed, "--prefix-cache")
    assert len(list((tmp_path / "cache" / "documents").iterdir())) >= 4
    joined = run_tiny(tiny_folder, *files, "-p", "Which?")
    assert (joined["strategy"], joined["exact"]) == ("exact", True)
    assert joined["prompt_tokens"] == told["prompt_tokens"]


def test_a_prefix_is_kept_between_commands(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    arguments = ("-p", "abcdefghij" * 30, "--prefix-cache")
    assert run_tiny(tiny_folder, *arguments)["cached_tokens"] == 0
    assert run_tiny(tiny_folder, *arguments)["cached_tokens"] == 256
    assert run_tiny(tiny_folder, *arguments[:2])["cached_tokens"] == 0
