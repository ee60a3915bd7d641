"""Streamed text: whole characters, at once, in constant work, and equal to the text decoded as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from russet.engine.detokenizer import MAX_CONTEXT_TOKENS, MAX_PENDING_TOKENS, StreamDetokenizer, WindowStream
from russet.engine.tokenizer import Tokenizer, load_tokenizer

Decode = Callable[[list[int]], str]
CHARACTERS = st.text(st.sampled_from("aé日🙂\n \u0301👩‍👧"), max_size=12)


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback", "sentencepiece", "metaspace"])
def tokenizer(request, folder, byte_level, byte_fallback, sentencepiece_bytes) -> Tokenizer:
    match request.param:
        case "byte-level":
            return load_tokenizer(folder(tokenizer__json=byte_level))
        case "byte-fallback":
            return load_tokenizer(folder(tokenizer__json=byte_fallback))
        case "sentencepiece":
            return load_tokenizer(folder(tokenizer__model=sentencepiece_bytes))
    source = tokenizers.Tokenizer.from_str(byte_fallback)
    source.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()])
    return load_tokenizer(folder(tokenizer__json=source.to_str()))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = StreamDetokenizer(tokenizer)
    return [*map(stream.add, ids), stream.finish()]


@given(ids=st.lists(st.integers(-1, 330), max_size=24))
def test_streamed_equals_decoded(tokenizer, ids):
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=CHARACTERS)
def test_no_piece_splits_a_character(tokenizer, text):
    streamed = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(streamed) == text
    assert not any("\ufffd" in piece for piece in streamed)
    assert streamed[-1] == "", "nothing is held back once its last byte has come"


@given(text=CHARACTERS)
def test_a_character_is_shown_with_its_last_byte(folder_of_bytes, text):
    """Every prefix of the tokens shows every character that is complete in it."""
    stream = StreamDetokenizer(folder_of_bytes)
    shown = ""
    content = text.encode()
    for end, byte in enumerate(content, start=1):
        shown += stream.add(byte + 3)
        assert shown == content[:end].decode("utf-8", "ignore")


@pytest.fixture(scope="module")
def folder_of_bytes(folder, byte_fallback) -> Tokenizer:
    """The byte-fallback tokenizer: token 3 + n is byte n."""
    return load_tokenizer(folder(tokenizer__json=byte_fallback.replace('"start":1', '"start":0')))


def test_the_stream_equals_the_libraries_own_decoding(folder, byte_level, sentencepiece_bytes):
    """The two references themselves, not our `decode`, for a reply with specials in the middle and a cut-off end."""
    reference = tokenizers.Tokenizer.from_str(byte_level)
    special = reference.token_to_id("<|im_end|>")
    ids = [*reference.encode("naïve 🙂 the fox").ids, special, *reference.encode(" über 🙂").ids[:-1]]
    streamed = "".join(pieces(load_tokenizer(folder(tokenizer__json=byte_level)), ids))
    assert streamed == reference.decode(ids)
    assert streamed.endswith("\ufffd")

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes)
    ids = [*model.encode("naïve 🙂 the fox"), 2, *model.encode(" über 🙂")[:-1]]
    streamed = "".join(pieces(load_tokenizer(folder(tokenizer__model=sentencepiece_bytes)), ids))
    assert streamed == model.decode(ids)
    assert streamed.endswith("\ufffd")


def test_the_end_of_an_incomplete_character_is_marked(folder_of_bytes):
    assert pieces(folder_of_bytes, [3 + 0xF0, 3 + 0x9F]) == ["", "", "\ufffd\ufffd"]


def test_stray_bytes_are_not_collected(folder_of_bytes):
    """A long run of them is shown as it comes: none waits for an end that may never be."""
    stream = StreamDetokenizer(folder_of_bytes)
    assert [stream.add(3 + 0xFF) for _ in range(5000)] == ["\ufffd"] * 5000


def test_the_window_is_bounded():
    """Neither undecodable tokens nor tokens without text make a step of work grow."""
    sizes = []

    def decode(tokens):
        sizes.append(len(tokens))
        return "".join(token.strip("_") for token in tokens)

    for token in ("\ufffd", "_"):
        stream = WindowStream(lambda _, token=token: token, decode)
        shown = "".join(stream.add(0) for _ in range(500)) + stream.finish()
        assert shown == token.strip("_") * 500
    assert max(sizes) <= MAX_CONTEXT_TOKENS + MAX_PENDING_TOKENS


def test_special_tokens_are_shown_on_request(folder, byte_level):
    tokenizer = load_tokenizer(folder(tokenizer__json=byte_level))
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    assert StreamDetokenizer(tokenizer).add(end) == ""
    assert StreamDetokenizer(tokenizer, skip_special=False).add(end) == "<|im_end|>"
