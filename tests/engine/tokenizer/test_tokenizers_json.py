"""tokenizer.json: text comes back, and ids and text are the library's own."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from russet.engine.errors import TokenizerError
from russet.engine.tokenizer import Tokenizer, load_tokenizer

IDS = st.lists(st.integers(-2, 330), max_size=24)


@pytest.fixture(scope="module")
def byte_level_tokenizer(folder, byte_level) -> Tokenizer:
    return load_tokenizer(folder(tokenizer__json=byte_level))


@pytest.fixture(scope="module")
def byte_fallback_tokenizer(folder, byte_fallback) -> Tokenizer:
    return load_tokenizer(folder(tokenizer__json=byte_fallback))


def known(reference: tokenizers.Tokenizer, ids: list[int]) -> list[int]:
    return [id for id in ids if id >= 0 and reference.id_to_token(id) is not None]


@given(text=st.text())
def test_byte_level_text_comes_back(byte_level_tokenizer, text):
    assert byte_level_tokenizer.decode(byte_level_tokenizer.encode(text), skip_special=False) == text


@given(text=st.text().filter(lambda text: "▁" not in text))
def test_byte_fallback_text_comes_back(byte_fallback_tokenizer, text):
    assert byte_fallback_tokenizer.decode(byte_fallback_tokenizer.encode(text), skip_special=False) == text


@given(text=st.text())
def test_ids_are_the_librarys(byte_level_tokenizer, byte_level, text):
    reference = tokenizers.Tokenizer.from_str(byte_level)
    assert byte_level_tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


@given(ids=IDS, skip=st.booleans())
def test_byte_level_decodes_any_ids_as_the_library_does(byte_level_tokenizer, byte_level, ids, skip):
    reference = tokenizers.Tokenizer.from_str(byte_level)
    expected = reference.decode(known(reference, ids), skip_special_tokens=skip)
    assert byte_level_tokenizer.decode(ids, skip_special=skip) == expected


# Special tokens, ASCII bytes, the space among them, and pieces: no run of bytes here is invalid UTF-8.
VALID_IDS = st.one_of(st.integers(0, 2), st.just(3 + ord(" ")), st.integers(3, 3 + 127), st.integers(259, 275))


@given(ids=st.lists(VALID_IDS, max_size=16), skip=st.booleans())
def test_byte_fallback_decodes_as_the_library_does(byte_fallback_tokenizer, byte_fallback, ids, skip):
    reference = tokenizers.Tokenizer.from_str(byte_fallback)
    expected = reference.decode(known(reference, ids), skip_special_tokens=skip)
    assert byte_fallback_tokenizer.decode(ids, skip_special=skip) == expected


def test_a_stray_byte_does_not_spoil_the_characters_beside_it(byte_fallback_tokenizer):
    ids = [byte + 3 for byte in "日".encode() + b"\xff"]
    assert byte_fallback_tokenizer.decode(ids) == "日\ufffd"


@pytest.mark.parametrize(
    ("decoder", "vocab"),
    [
        (decoders.Metaspace(), ["▁the", "▁", "▁▁", "cat", "s▁"]),
        (decoders.WordPiece(), ["the", "##re", "##s", ".", "'s"]),
        (decoders.BPEDecoder(), ["the</w>", "re", "s</w>", "</w>"]),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), ["Ġa", "Ġ", "Ã", "©", "b"]),
        (None, ["the", "cat", "s"]),
    ],
    ids=["metaspace", "wordpiece", "word-end", "sequence", "none"],
)
@given(data=st.data())
def test_other_decoders_decode_as_the_library_does(folder_of, decoder, vocab, data):
    tokenizer, reference = folder_of(decoder, vocab)
    ids = data.draw(st.lists(st.integers(0, len(vocab)), max_size=10))
    assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.fixture(scope="module")
def folder_of(folder):
    made = {}

    def make(decoder, vocab):
        if str(vocab) not in made:
            reference = tokenizers.Tokenizer(models.WordLevel({token: id for id, token in enumerate(vocab)}, vocab[0]))
            reference.add_special_tokens(["<end>"])
            if decoder is not None:
                reference.decoder = decoder
            made[str(vocab)] = load_tokenizer(folder(tokenizer__json=reference.to_str())), reference
        return made[str(vocab)]

    return make


def test_special_tokens_in_a_text(byte_level_tokenizer):
    start = byte_level_tokenizer.token_id("<|im_start|>")
    assert start is not None
    assert start in byte_level_tokenizer.encode("<|im_start|>user")
    assert start not in byte_level_tokenizer.encode("<|im_start|>user", special=False)
    assert start in byte_level_tokenizer.encode("<|im_start|>user"), "the flag of one call must not stay"
    assert byte_level_tokenizer.decode([start]) == ""
    assert byte_level_tokenizer.decode([start], skip_special=False) == "<|im_start|>"
    assert byte_level_tokenizer.token_id("<no such token>") is None


def test_added_tokens_that_are_not_special_are_shown(byte_level_tokenizer):
    assert byte_level_tokenizer.decode(byte_level_tokenizer.encode("<think>x<a b>")) == "<think>x<a b>"


def with_bos(byte_level: str, *, suffix: str = "") -> str:
    tokenizer = tokenizers.Tokenizer.from_str(byte_level)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<|im_start|> $A{suffix}", special_tokens=ids)
    return tokenizer.to_str()


def test_a_prompt_begins_as_the_post_processor_says(folder, byte_level):
    tokenizer = load_tokenizer(folder(tokenizer__json=with_bos(byte_level)))
    bos = tokenizer.token_id("<|im_start|>")
    assert tokenizer.bos_id == bos
    assert tokenizer.encode_prompt("hello") == [bos, *tokenizer.encode("hello")]
    assert tokenizer.encode_prompt("<|im_start|>hello") == [bos, *tokenizer.encode("hello")], "no second BOS"


def test_a_prompt_does_not_end_with_eos(folder, byte_level):
    tokenizer = load_tokenizer(folder(tokenizer__json=with_bos(byte_level, suffix=" <|im_end|>")))
    assert tokenizer.encode_prompt("hello") == [tokenizer.bos_id, *tokenizer.encode("hello")]


@pytest.mark.parametrize("wanted", [True, False])
def test_add_bos_token_overrules_the_post_processor(folder, byte_level, wanted):
    source = byte_level if wanted else with_bos(byte_level)
    config = {"bos_token": "<|im_start|>", "add_bos_token": wanted}
    tokenizer = load_tokenizer(folder(tokenizer__json=source, tokenizer_config__json=config))
    bos = [tokenizer.bos_id] if wanted else []
    assert tokenizer.encode_prompt("hello") == [*bos, *tokenizer.encode("hello")]


def test_a_prompt_is_neither_cut_nor_padded(folder, byte_level):
    source = tokenizers.Tokenizer.from_str(byte_level)
    source.enable_truncation(4)
    source.enable_padding(length=64)
    tokenizer = load_tokenizer(folder(tokenizer__json=source.to_str()))
    plain = load_tokenizer(folder(tokenizer__json=byte_level))
    text = "hello world, hello world"
    assert tokenizer.encode(text) == plain.encode(text)


def test_clean_up_is_left_aside(folder, byte_level):
    config = {"clean_up_tokenization_spaces": True}
    tokenizer = load_tokenizer(folder(tokenizer__json=byte_level, tokenizer_config__json=config))
    assert tokenizer.decode(tokenizer.encode("a . b , c")) == "a . b , c"


def test_half_a_surrogate_pair_is_refused(byte_level_tokenizer):
    with pytest.raises(TokenizerError, match=r"holds .* half of a surrogate pair"):
        byte_level_tokenizer.encode("ab\ud83d")


def test_vocabulary_counts_added_tokens(byte_level_tokenizer, byte_level):
    ids = [token["id"] for token in json.loads(byte_level)["added_tokens"]]
    assert byte_level_tokenizer.vocab_size == max(ids) + 1


def test_newlines_of_apple_foundation_models(folder):
    source = tokenizers.Tokenizer(models.BPE({"<n>": 0, "a": 1, "b": 2, "<turn_end>": 3}, []))
    source.add_tokens(["<n>", "<turn_end>"])
    source.decoder = decoders.ByteLevel()
    source.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = load_tokenizer(folder(tokenizer__json=source.to_str(), config__json={"model_type": "afm7"}))
    assert tokenizer.encode("a\nb") == [1, 0, 2]
    assert tokenizer.decode([1, 0, 2]) == "a\nb"
    assert tokenizer.eos_ids == {3}
