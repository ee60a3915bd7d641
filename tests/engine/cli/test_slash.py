from __future__ import annotations

import pytest

from russet.engine.cli.conversation import Conversation
from russet.engine.cli.replies import PlainView
from russet.engine.cli.slash import COMMANDS, is_slash_command, run_slash_command
from russet.engine.errors import InvalidOptionError, OutputExistsError, SessionFileError


@pytest.fixture
def chat(fakes) -> Conversation:
    model = fakes.FakeModel()
    return Conversation(
        model=model,
        session=model.session(system="Be brief."),
        options={"seed": 1},
        view=lambda: PlainView(False),
        show_stats=False,
    )


@pytest.mark.parametrize("text", ["/help", "/system Be kind.", "/nonsense", "/"])
def test_a_slash_and_a_word_is_a_command(text: str) -> None:
    assert is_slash_command(text)


@pytest.mark.parametrize("text", ["/usr/bin is what?", "a /help", " /help", "1/2"])
def test_other_text_is_a_message(text: str) -> None:
    assert not is_slash_command(text)


def test_help_names_every_command(chat, capsys) -> None:
    run_slash_command(chat, "/help")
    shown = capsys.readouterr().err
    assert all(name in shown for name in COMMANDS)


def test_clear_keeps_the_system_prompt(chat) -> None:
    chat.answer("say hi")
    run_slash_command(chat, "/clear")
    assert chat.session.messages == [{"role": "system", "content": "Be brief."}]


def test_system_shows_and_sets(chat, capsys) -> None:
    chat.answer("say hi")
    run_slash_command(chat, "/system")
    assert "Be brief." in capsys.readouterr().err
    run_slash_command(chat, "/system Be kind, please.")
    assert chat.session.system == "Be kind, please."
    assert [message["role"] for message in chat.session.messages] == ["system", "user", "assistant"]


def test_regen_asks_the_last_question_again(chat, capsys) -> None:
    chat.answer("say hi")
    run_slash_command(chat, "/regen")
    assert capsys.readouterr().out == "hi\nhi\n"
    assert len(chat.session.messages) == 3
    assert chat.session.options == {"seed": 1}


def test_save_and_load(chat, capsys, tmp_path) -> None:
    path = tmp_path / "my talk.russet"
    chat.answer("say hi")
    run_slash_command(chat, f"/save {path}")
    run_slash_command(chat, "/clear")
    run_slash_command(chat, f"/load {path}")
    assert len(chat.session.messages) == 3
    assert "Loaded 2 messages" in capsys.readouterr().err
    run_slash_command(chat, f"/save {path}")  # the conversation's own file may be overwritten


def test_save_leaves_other_files_alone(chat, tmp_path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"notes\.txt exists already"):
        run_slash_command(chat, f"/save {path}")
    assert path.read_text() == "precious"


def test_a_failed_load_changes_nothing(chat) -> None:
    chat.answer("say hi")
    before = chat.session
    with pytest.raises(SessionFileError):
        run_slash_command(chat, "/load /nowhere")
    assert chat.session is before and chat.file is None


def test_stats_counts(chat, capsys) -> None:
    chat.answer("say one two")
    chat.answer("say three")
    run_slash_command(chat, "/stats")
    shown = capsys.readouterr().err
    assert "4 messages, 7 of 2048 positions cached" in shown
    assert "Generated: 3 tokens" in shown
    assert "Last reply: 1 tok" in shown


def test_exit_leaves(chat) -> None:
    run_slash_command(chat, "/exit")
    assert chat.leaving


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/sav", "There is no command /sav; did you mean /save?"),
        ("/xyzzy", "There is no command /xyzzy; /help lists the commands."),
        ("/save", "/save needs a file, as in /save talk.russet."),
        ("/clear all", "/clear takes no argument, but was given 'all'."),
        ("/regen", "There is no reply to make again yet."),
    ],
)
def test_wrong_commands_are_told_in_one_sentence(chat, text: str, sentence: str) -> None:
    with pytest.raises(InvalidOptionError) as error:
        run_slash_command(chat, text)
    assert str(error.value) == sentence
