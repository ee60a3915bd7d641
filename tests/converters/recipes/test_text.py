"""Text files become shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from russet.converters.recipes.corpus import Corpus
from russet.converters.recipes.text import token_folder
from russet.engine.errors import TrainingDataError
from russet.engine.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path, model: Path) -> list[str]:
    """The documents of both files, in the order they have there."""
    ids = np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob("*.bin"))])
    text = load_tokenizer(model).decode(ids.tolist(), skip_special=False)
    return text.split("<|endoftext|>")[:-1]


def test_every_document_is_there_once_and_some_are_held_out(tmp_path: Path, source_folder: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("A text with <|im_end|> spelled out.")
    lines = [f"Line {i}: größer." for i in range(5)]
    (texts / "b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    folder = token_folder(texts, source_folder)
    assert sorted(read(folder, source_folder)) == sorted(["A text with <|im_end|> spelled out.", *lines])
    assert np.fromfile(folder / "val.bin", "<u2").size > 5
    corpus = Corpus(folder, 8, 259, source_folder / "tokenizer.json")
    assert len(corpus.train) and len(corpus.held_out)
    stamp = (folder / "train_00.bin").stat().st_mtime_ns
    assert token_folder(texts, source_folder) == folder and (folder / "train_00.bin").stat().st_mtime_ns == stamp


def test_changed_text_is_tokenised_again(tmp_path: Path, source_folder: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One text.")
    first = token_folder(file, source_folder)
    file.write_text("Another text.")
    second = token_folder(file, source_folder)
    assert first != second and read(second, source_folder) == ["Another text."]


def test_a_folder_of_ids_is_taken_as_it_is(data: Path, source_folder: Path) -> None:
    (data / "readme.txt").write_text("not to be trained on")
    assert token_folder(data, source_folder) == data


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"text": 1}\n', "Line 1 of .* is not a JSON object with a field 'text'"),
        ("a.jsonl", b"text\n", "Line 1 of"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_text_that_cannot_be_read_is_refused(
    tmp_path: Path, source_folder: Path, cache: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingDataError, match=told):
        token_folder(tmp_path / name, source_folder)
    assert not [path for path in (cache / "texts").iterdir() if path.suffix != ".lock"]


def test_a_missing_path_is_told(tmp_path: Path, source_folder: Path) -> None:
    with pytest.raises(TrainingDataError, match="does not exist"):
        token_folder(tmp_path / "nothing", source_folder)
