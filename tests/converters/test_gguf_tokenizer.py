"""Tokenizers rebuilt from GGUF metadata answer as the tokenizer that the metadata was taken from."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from russet.converters.gguf_file import GGUFFile
from russet.converters.gguf_tokenizer import PRE_TOKENIZERS, end_ids, tokenizer_files
from russet.engine.errors import CheckpointError, TokenizerError, UnsupportedModelError

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock; we'll see 3.14159!",
    "def main(args):\n    return [x ** 2 for x in range(10)]  # squares\n\n\tprint('done')",
    "Größe, naïve café, Ελληνικά, русский текст, 日本語のテキスト, 한국어, 👍🏽 emoji",
    "THEY'LL SAY IT'S FINE   with   many    spaces\r\n\r\nand lines",
] * 3
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
PROSE = st.lists(
    st.sampled_from([*" \n\t'", "the", "quick", "It's", "WE'LL", "123", "4567", "é", "e\u0301", "日本", "👍", "x="])
)
SPECIAL = "<|end|>"


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> GGUFFile:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


def rebuilt(file: GGUFFile) -> tuple[Tokenizer, dict]:
    files = tokenizer_files(file)
    return Tokenizer.from_str(files["tokenizer.json"].decode()), json.loads(files["tokenizer_config.json"])


def hugging_face(pre: str) -> Tokenizer:
    """A byte-level tokenizer of the published kind, trained here."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = whole
    elif pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    else:  # the expression of Qwen 2's and Llama 3's own tokenizer.json
        digits = r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}"
        rule = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
            + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        split = pre_tokenizers.Split(Regex(rule), behavior="isolated", invert=False)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return tokenizer


def fill_byte_level(tokenizer: Tokenizer, pre: str | None) -> Callable[[gguf.GGUFWriter], None]:
    def fill(writer: gguf.GGUFWriter) -> None:
        state = json.loads(tokenizer.to_str())
        tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == SPECIAL else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
        writer.add_bos_token_id(tokens.index(SPECIAL))
        writer.add_eos_token_id(tokens.index(SPECIAL))
        writer.add_chat_template("{{ messages }}")

    return fill


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2", "llama-bpe"])
def byte_level(request, tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    original = hugging_face(request.param)
    file = write(tmp_path_factory.mktemp("bpe") / "a.gguf", fill_byte_level(original, request.param))
    return original, rebuilt(file)[0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXT | PROSE.map("".join))
def test_byte_level_encodes_as_the_original(byte_level: tuple[Tokenizer, Tokenizer], text: str) -> None:
    original, ours = byte_level
    ids = original.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, add_special_tokens=False).ids == ids
    assert ours.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


def test_special_tokens_are_found_in_text(byte_level: tuple[Tokenizer, Tokenizer]) -> None:
    original, ours = byte_level
    text = f"one{SPECIAL}two"
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text, add_special_tokens=False).ids and original.token_to_id(SPECIAL) in ids
    assert ours.decode(ids) == "onetwo"


def test_the_default_rule_cuts_digits_in_threes_and_punctuation_apart() -> None:
    """llama.cpp's default: four expressions, one after the other."""
    pieces = ["It's 12345 x+y"]
    for rule in PRE_TOKENIZERS["default"]:
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        pieces = [part for piece in pieces for part, _ in split.pre_tokenize_str(piece)]
    assert pieces == ["It", "'", "s", " ", "123", "45", " x", "+", "y"]


def test_llama3_takes_a_word_of_the_vocabulary_whole(tmp_path: Path) -> None:
    """Its tokenizer.json says ignore_merges: "abc" is one token though no merges lead to it."""

    def fill(pre: str) -> Callable[[gguf.GGUFWriter], None]:
        def add(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(["a", "b", "c", "ab", "abc"])
            writer.add_token_merges(["a b"])

        return add

    for pre, expected in (("llama-bpe", ["abc"]), ("gpt-2", ["ab", "c"])):
        tokenizer, _ = rebuilt(write(tmp_path / f"{pre}.gguf", fill(pre)))
        assert tokenizer.encode("abc").tokens == expected


def test_begin_of_sequence(tmp_path: Path) -> None:
    original = hugging_face("smollm")
    bos = original.token_to_id(SPECIAL)

    def adding(writer: gguf.GGUFWriter) -> None:
        fill_byte_level(original, "smollm")(writer)
        writer.add_add_bos_token(True)

    tokenizer, config = rebuilt(write(tmp_path / "a.gguf", adding))
    assert tokenizer.encode("x").ids[0] == bos and tokenizer.encode("x", add_special_tokens=False).ids[0] != bos
    assert config["add_bos_token"] is True and config["bos_token"] == config["eos_token"] == SPECIAL
    assert config["chat_template"] == "{{ messages }}" and config["model_max_length"] == 128
    assert rebuilt(write(tmp_path / "b.gguf", fill_byte_level(original, "smollm")))[0].encode("x").ids[0] != bos
    assert rebuilt(write(tmp_path / "c.gguf", fill_byte_level(original, "llama-bpe")))[0].encode("x").ids[0] == bos


def test_end_tokens(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "</s>", "<|im_end|>", "<|eot_id|>", "<|end|>"])
        writer.add_token_types([1, 3, 3, 3, 1])
        writer.add_eos_token_id(1)
        writer.add_eot_token_id(3)

    assert end_ids(write(tmp_path / "a.gguf", fill)) == [1, 3, 2]


def sentencepiece_model(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        character_coverage=0.98,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def fill_sentencepiece(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> Callable[[gguf.GGUFWriter], None]:
    def kind(i: int) -> int:
        if model.is_byte(i):
            return 6
        return 2 if model.is_unknown(i) else 3 if model.is_control(i) else 4 if model.id_to_piece(i) == "<tool>" else 1

    def fill(writer: gguf.GGUFWriter) -> None:
        ids = range(model.get_piece_size())
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([model.id_to_piece(i) for i in ids])
        writer.add_token_scores([model.get_score(i) for i in ids])
        writer.add_token_types([kind(i) for i in ids])
        writer.add_add_space_prefix(prefix)

    return fill


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pieces(request, tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer, dict]:
    original = sentencepiece_model(request.param)
    path = tmp_path_factory.mktemp("spm") / "a.gguf"
    return original, *rebuilt(write(path, fill_sentencepiece(original, request.param)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=TEXT | PROSE.map("".join))
def test_sentencepiece_encodes_as_the_original(pieces: tuple, text: str) -> None:
    original, ours, _ = pieces
    ids = original.encode(text)
    assert ours.encode(text, add_special_tokens=False).ids == ids
    assert ours.decode(ids) == original.decode(ids)


def test_sentencepiece_settings(pieces: tuple) -> None:
    _, ours, config = pieces
    assert config["bos_token"] == "<s>" and config["eos_token"] == "</s>" and config["unk_token"] == "<unk>"
    assert ours.encode("x").ids[0] == 1 and config["add_bos_token"] is True
    assert ours.token_to_id("<tool>") in ours.encode("a <tool> b").ids


def test_what_is_refused(tmp_path: Path) -> None:
    original = hugging_face("gpt-2")

    def kind(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list(["a"])

    def types(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        writer.add_token_types([1])

    def merges(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        writer.add_token_merges(["a c"])

    with pytest.raises(UnsupportedModelError, match="rule 'falcon', which Russet does not know; known are default"):
        tokenizer_files(write(tmp_path / "a.gguf", fill_byte_level(original, "falcon")))
    with pytest.raises(UnsupportedModelError, match="kind 'rwkv'; Russet rebuilds gpt2 and llama"):
        tokenizer_files(write(tmp_path / "b.gguf", kind))
    with pytest.raises(CheckpointError, match="2 tokens but 1 token types"):
        tokenizer_files(write(tmp_path / "c.gguf", types))
    with pytest.raises(TokenizerError, match="is damaged"):
        tokenizer_files(write(tmp_path / "d.gguf", merges))
