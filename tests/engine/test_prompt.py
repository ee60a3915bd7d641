"""Prompts in parts: what is refused, how they are cut, and that their concatenation is what every strategy reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import russet
from russet.engine.chat_template import ChatTemplate
from russet.engine.encoding import encode_parts, encode_rest
from russet.engine.errors import ChatTemplateError, EmptyPromptError, InvalidOptionError
from russet.engine.prefill.base import PromptTokens
from russet.engine.tokenizer import load_tokenizer

PARTS = russet.Prompt("Answer from the texts.", ("One text.", "Another text."), "Which?", "Be brief.")
OPENING, CLOSING = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def text_of(model: russet.Model, tokens: Any) -> str:
    return model.tokenizer.decode(tokens, skip_special=False)


def test_the_template_opens_in_the_preamble_and_closes_in_the_task(tiny_model: russet.Model) -> None:
    segments = tiny_model.prepare(PARTS).segments
    assert segments is not None
    assert text_of(tiny_model, segments.preamble) == OPENING + "Answer from the texts.\n\n"
    assert [text_of(tiny_model, d) for d in segments.documents] == ["One text.\n\n", "Another text.\n\n"]
    assert text_of(tiny_model, segments.query) == "Which?"
    assert text_of(tiny_model, segments.task) == "\n\nBe brief." + CLOSING


def test_a_system_message_opens_too_and_raw_text_has_no_frame(tiny_model: russet.Model) -> None:
    with_system = tiny_model.prepare(PARTS, system="Be kind.").segments
    raw = tiny_model.prepare(PARTS, raw=True)
    assert with_system is not None and raw.segments is not None
    opening = "<|im_start|>system\nBe kind.<|im_end|>\n" + OPENING
    assert text_of(tiny_model, with_system.preamble).startswith(opening)
    assert text_of(tiny_model, raw.tokens) == "".join("".join(part) for part in PARTS.texts())
    assert raw.tail == 1


@settings(max_examples=30, deadline=None)
@given(
    preamble=st.text(max_size=8),
    documents=st.lists(st.text(max_size=8), max_size=5),
    query=st.text(min_size=1, max_size=8).filter(str.strip),
    task=st.text(max_size=8),
)
def test_the_segments_are_the_tokens_and_parts_the_same_text_as_one_turn(
    tiny_model: russet.Model, preamble: str, documents: list[str], query: str, task: str
) -> None:
    prompt = russet.Prompt(preamble, documents, query, task)  # type: ignore[arg-type]
    prepared = tiny_model.prepare(prompt)
    parts = prepared.segments
    assert parts is not None
    joined = [*parts.preamble, *(t for d in parts.documents for t in d), *parts.query, *parts.task]
    assert list(prepared.tokens) == joined
    # A byte-level tokenizer without merges cuts nowhere differently, so naive concatenation is the same tokens.
    first, texts, asked, last = prompt.texts()
    assert joined == tiny_model.encode([{"role": "user", "content": first + "".join(texts) + asked + last}])


def test_exact_prefill_reads_the_concatenation(tiny_model: russet.Model) -> None:
    settings = {"max_tokens": 6, "logit_bias": {258: -1e9}}
    reply = tiny_model.generate(PARTS, **settings)
    assert reply.tokens == tiny_model.generate(tiny_model.encode(PARTS), **settings).tokens
    assert reply.exact


def test_the_tail_is_what_follows_the_user(tiny_model: russet.Model) -> None:
    for prompt in ("Hello", PARTS, [{"role": "user", "content": "assistant\n"}]):
        prepared: PromptTokens = tiny_model.prepare(prompt)  # type: ignore[arg-type]
        assert text_of(tiny_model, prepared.tokens[-prepared.tail :]) == CLOSING
    assert tiny_model.prepare("Hello", raw=True).tail == 1
    assert tiny_model.prepare([1, 2, 3]).tail == 1


def test_sessions_hand_the_tail_on(tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PromptTokens] = []
    real = tiny_model.prepare_chat
    monkeypatch.setattr(tiny_model, "prepare_chat", lambda messages: seen.append(real(messages)) or seen[-1])
    tiny_model.session().respond("Hello", max_tokens=1)
    assert text_of(tiny_model, seen[0].tokens[-seen[0].tail :]) == CLOSING


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"documents": ["x"]}, EmptyPromptError, "has no query"),
        ({"query": " \n"}, EmptyPromptError, "has no query"),
        ({"documents": "x", "query": "y"}, InvalidOptionError, "documents are a str; give a list of texts"),
        ({"documents": None, "query": "y"}, InvalidOptionError, "documents are a NoneType"),
        ({"documents": ["x", 3], "query": "y"}, InvalidOptionError, "document 2 is of type int"),
        ({"query": b"y"}, InvalidOptionError, "query is of type bytes"),
    ],
)
def test_what_is_no_prompt_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        russet.Prompt(**arguments)


def test_a_template_that_changes_the_users_text_is_refused(tiny_model: russet.Model) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(ChatTemplateError, match="changes what the user says"):
        encode_parts(tiny_model.tokenizer, template, PARTS)
    assert template.closing == ""


def test_a_text_that_goes_on_gets_no_space_in_front(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one text and another text, as they come\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    tokenizer = load_tokenizer(tmp_path)
    whole = tokenizer.encode("one text") + encode_rest(tokenizer, "another")
    assert tokenizer.decode(whole) == "one textanother"
    assert tokenizer.decode(tokenizer.encode("one text") + tokenizer.encode("another")) == "one text another"
