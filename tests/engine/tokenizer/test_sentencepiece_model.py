"""tokenizer.model: ids and text are the library's own, special tokens and BOS are the settings'."""

from __future__ import annotations

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from russet.engine.chat_template import ChatTemplate
from russet.engine.tokenizer import Tokenizer, load_tokenizer

VARIANTS = {
    "llama": {},
    "gemma": {"add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "vocab_size": 295},
    "collapsing": {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
    "without bytes": {"byte_fallback": False, "vocab_size": 50},
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, folder, train_sentencepiece) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    model = train_sentencepiece(**VARIANTS[request.param])
    return load_tokenizer(folder(tokenizer__model=model)), sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def tokenizer(folder, sentencepiece_bytes) -> Tokenizer:
    return load_tokenizer(folder(tokenizer__model=sentencepiece_bytes))


@given(text=st.text())
def test_ids_are_the_librarys(pair, text):
    tokenizer, reference = pair
    assert tokenizer.encode(text, special=False) == reference.encode(text)


@given(data=st.data())
def test_any_ids_decode_as_the_library_does(pair, data):
    tokenizer, reference = pair
    end = reference.get_piece_size() - 1
    # The special pieces and "▁" are few among many; drawn from their own range they come often enough to count.
    space = reference.piece_to_id("▁")
    token = st.one_of(st.integers(0, 5), st.just(space), st.integers(0, end))
    ids = data.draw(st.lists(token, max_size=12))
    assert tokenizer.decode(ids) == reference.decode(ids)


@given(text=st.text().filter(lambda text: "▁" not in text))
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_control_pieces_are_special_tokens(tokenizer):
    end = tokenizer.token_id("</s>")
    ids = tokenizer.encode("a b</s>a b")
    assert ids == [*tokenizer.encode("a b"), end, *tokenizer.encode("x</s>a b")[-len(tokenizer.encode("a b")) :]]
    assert end not in tokenizer.encode("a b</s>a b", special=False)
    assert tokenizer.decode(ids) == "a ba b", "no space is put before a text that goes on"
    assert tokenizer.decode(ids, skip_special=False) == "a b</s>a b"


def test_a_special_token_ends_an_incomplete_character(tokenizer, sentencepiece_bytes):
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes)
    first, second, third = (tokenizer.token_id(f"<0x{byte:02X}>") for byte in "日".encode())
    ids = [first, second, tokenizer.token_id("</s>"), third]
    assert tokenizer.decode(ids) == reference.decode(ids) == "\ufffd" * 3


def test_legacy_puts_a_space_before_every_segment(folder, sentencepiece_bytes, tokenizer):
    config = {"legacy": True}
    legacy = load_tokenizer(folder(tokenizer__model=sentencepiece_bytes, tokenizer_config__json=config))
    assert legacy.encode("a</s>a") == [*tokenizer.encode("a"), tokenizer.token_id("</s>"), *tokenizer.encode("a")]


def test_a_prompt_begins_with_bos(tokenizer):
    assert tokenizer.bos_id == 1
    assert tokenizer.encode_prompt("hello") == [1, *tokenizer.encode("hello")]
    assert 1 not in tokenizer.encode("hello")


def test_add_bos_token_false(folder, sentencepiece_bytes):
    config = {"add_bos_token": False}
    tokenizer = load_tokenizer(folder(tokenizer__model=sentencepiece_bytes, tokenizer_config__json=config))
    assert tokenizer.encode_prompt("hello") == tokenizer.encode("hello")


def test_added_tokens_of_the_settings(folder, sentencepiece_bytes):
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes).get_piece_size()
    tokens = {str(pieces + 1): {"content": "<|call|>", "special": True, "rstrip": True}}
    tokenizer = load_tokenizer(
        folder(
            tokenizer__model=sentencepiece_bytes,
            tokenizer_config__json={"added_tokens_decoder": tokens},
            added_tokens__json={"<tool>": pieces},
        )
    )
    assert tokenizer.vocab_size == pieces + 2
    assert tokenizer.token_id("<|call|>") == pieces + 1
    ids = tokenizer.encode("a<|call|>  b<tool>")
    assert ids == [*tokenizer.encode("a"), pieces + 1, *tokenizer.encode("</s>b")[1:], pieces]
    assert tokenizer.decode(ids) == "ab<tool>", "the special one is left out, the other is not"
    assert tokenizer.encode("<tool>", special=False) == [pieces]
    assert tokenizer.decode([pieces + 2, -1, pieces]) == "<tool>", "unknown ids add nothing"


def test_added_tokens_take_white_space_and_the_longest_wins(folder, sentencepiece_bytes):
    tokens = {"400": {"content": "<|x|>", "lstrip": True}, "401": {"content": "<|x|><|y|>"}}
    config = {"added_tokens_decoder": tokens}
    tokenizer = load_tokenizer(folder(tokenizer__model=sentencepiece_bytes, tokenizer_config__json=config))
    assert tokenizer.encode("a \n<|x|>") == [*tokenizer.encode("a"), 400]
    assert tokenizer.encode("<|x|><|y|>") == [401]


def test_apple_foundation_models(folder, sentencepiece_bytes):
    path = folder(tokenizer__model=sentencepiece_bytes, config__json={"model_type": "afm7"})
    tokenizer = load_tokenizer(path)
    newline, end, turn = (tokenizer.token_id(token) for token in ("<n>", "</s>", "<turn_start>"))
    assert newline in tokenizer.encode("a\nb")
    assert tokenizer.decode(tokenizer.encode("a\nb\n\nc")) == "a\nb\n\nc"
    assert tokenizer.eos_ids == {end, tokenizer.token_id("<turn_end>")}
    assert tokenizer.encode_prompt("a") == tokenizer.encode("a"), "no BOS"
    template = ChatTemplate.load(path, tokenizer)
    assert template is not None
    ids = tokenizer.encode(template.render([{"role": "user", "content": "hello"}]))
    assert ids[:2] == [end, turn], "EOS, then the first turn with no stray space between"
