"""What lookup text asks for stands in it before."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from russet.converters.texts.lookup import Lookup
from russet.converters.texts.passages import Passages
from russet.engine.chat_template import ChatTemplate
from russet.engine.errors import TrainingDataError
from russet.engine.tokenizer.base import Tokenizer

LENGTH, END = 2048, 256


@pytest.fixture
def passages(prose: Path, tokenizer: Tokenizer) -> Passages:
    return Passages(prose, tokenizer, END)


@pytest.fixture
def lookup(passages: Passages, tokenizer: Tokenizer, tiny_folder: Path) -> Lookup:
    return Lookup(passages, tokenizer, ChatTemplate.load(tiny_folder, tokenizer), END, LENGTH)


def items_of(lookup: Lookup, tokenizer: Tokenizer, count: int) -> list[str]:
    windows = [lookup.window(np.random.default_rng([0, i])) for i in range(count)]
    assert all(len(window) == LENGTH and window[-1] == END for window in windows)
    text = tokenizer.decode(np.concatenate(windows).tolist(), skip_special=False)
    return text.split("<|endoftext|>")[:-1]


def test_answers_stand_in_the_text_before(lookup: Lookup, tokenizer: Tokenizer) -> None:
    chats = cited = listed = read = 0
    for item in items_of(lookup, tokenizer, 120):
        if "<|im_start|>assistant" in item:
            assert item.startswith("<|im_start|>user\n") and item.endswith("<|im_end|>\n")
            for found in re.finditer(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", item, re.DOTALL):
                assert found[1].strip() and found[1] in item[: found.start()], item
                chats += 1
        elif pairs := re.findall(r"^print\((\w+)\)  # (.*)$", item, re.MULTILINE):
            assert all(f"\n{key} = {value}\n" in item for key, value in pairs), item
            listed += len(pairs)
        elif item.startswith("Background: "):
            *_, last = re.finditer(r"\n\nQuestion: .*?\n\nAnswer: (.*?)(?=\n\nQuestion: |$)", item, re.DOTALL)
            assert last[1] in item[: last.start()], item
            read += 1
        elif found := re.search(r'As the text above says, "(.*?)"$', item, re.MULTILINE):
            assert found[1] in item[: found.start()]
            cited += 1
    assert chats > 30 and cited and listed and read


def test_windows_differ_and_a_seed_decides(lookup: Lookup) -> None:
    first, again, other = (lookup.window(np.random.default_rng(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_without_a_template_there_are_no_chats(passages: Passages, tokenizer: Tokenizer) -> None:
    lookup = Lookup(passages, tokenizer, None, END, LENGTH)
    assert not any("assistant" in item for item in items_of(lookup, tokenizer, 10))


def test_passages_are_prose_within_one_document(passages: Passages, tokenizer: Tokenizer) -> None:
    for seed in range(20):
        passage = passages.draw(300, np.random.default_rng(seed), 1, front=100)
        text, tail = tokenizer.decode(passage.tokens), tokenizer.decode(passage.tokens[100:])
        assert len(passage.tokens) == 300 and END not in passage.tokens and "|" not in text and text.endswith(".")
        assert passage.sentences and all(tail.count(sentence) == 1 for sentence in passage.sentences)


def test_a_folder_without_prose_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingDataError, match="has no"):
        Passages(tmp_path, tokenizer, END)
    np.array(tokenizer.encode("0 | 1 | 2\n" * 400), dtype="<u2").tofile(tmp_path / "a.bin")
    with pytest.raises(TrainingDataError, match="no passage of prose"):
        Passages(tmp_path, tokenizer, END).draw(100, np.random.default_rng(0))
