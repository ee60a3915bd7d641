from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from russet.bench.tasks import parse_task
from russet.bench.tasks.base import Example
from russet.bench.tasks.data import read_text
from russet.bench.tasks.needle import running
from russet.bench.tasks.scores import contains_answer, normalise, rouge1
from russet.engine.errors import BenchmarkDataError, InvalidOptionError
from russet.engine.prompt import Prompt


def count(prompt: Prompt) -> int:
    """A tokenizer of words and line breaks."""
    preamble, documents, query, task = prompt.texts()
    return len("".join([preamble, *documents, query, task]).replace("\n", " \n ").split(" "))


def write_rows(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(name: str, folder: Path, limit: int = 50) -> list[Example]:
    return list(islice(parse_task(name).examples(folder, count), limit))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Eight questions; the passage of the last one holds every answer."""
    texts = [f"Fact {i} is word{i}." for i in range(7)] + [" ".join(f"word{i}" for i in range(8))]
    rows = [
        {"question": f"q{i}", "answers": [f"word{i}"], "ctxs": [{"title": f"t{i}", "text": text, "isgold": True}]}
        for i, text in enumerate(texts)
    ]
    write_rows(tmp_path, "nq_open_oracle.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize(
    ("output", "answers", "score"),
    [
        ("It was the Beatles!", ["beatles"], 1),
        ("in 1932", ["3", "193"], 0),
        ("12,345", ["12345"], 1),
        ("nothing", [], 0),
        ("an apple", ["the"], 0),
        ("He said: New  York.", ["Boston", "new york"], 1),
    ],
)
def test_an_answer_is_contained_in_whole_words(output: str, answers: list[str], score: int) -> None:
    assert contains_answer(output, answers) == score
    assert normalise("The  Cat's, A.") == "cats"


def test_rouge1_is_the_f1_of_clipped_counts() -> None:
    assert rouge1("the cat the cat", ["The cat sat"]) == pytest.approx(2 * 2 / (4 + 3))
    assert rouge1("x", ["y", "x x"]) == pytest.approx(2 / 3)
    assert rouge1("", ["y"]) == rouge1("y", []) == 0


def test_the_gold_document_moves_and_distractors_hold_no_answer(questions: Path) -> None:
    found = examples("nq:4", questions)
    places = [[f"(Title: t{i})" in text for text in row.prompt.documents].index(True) for i, row in enumerate(found)]
    assert places == [0, 1, 2, 3, 0, 1, 2, 3]
    for row in found[:7]:
        assert len(set(row.prompt.documents)) == 4
        assert sum(row.answers[0] in text for text in row.prompt.documents) == 1
        assert not any("t7" in text for text in row.prompt.documents)
    assert found == examples("nq:4", questions)


def test_the_distractors_of_few_documents_are_among_those_of_many(questions: Path) -> None:
    few, many = examples("nq:3", questions), examples("nq:6", questions)
    assert all(set(a.prompt.documents) < set(b.prompt.documents) for a, b in zip(few, many, strict=True))


def test_squad_sets_the_passage_apart_from_the_question(tmp_path: Path) -> None:
    query = "Title: T\nBackground: Some text.\nQuestion: Who?\nAnswer:"
    write_rows(tmp_path, "squad.jsonl", [{"query": query, "answers": ["me"]}])
    (row,) = examples("squad", tmp_path)
    assert row.prompt.documents == ("Title: T\nBackground: Some text.",)
    assert row.prompt.query.strip() == "Question: Who?\nAnswer:" and row.answers == ("me",)


def test_pairs_are_cut_around_the_one_asked_for(tmp_path: Path) -> None:
    pairs = [[f"key{i}", f"value{i}"] for i in range(9)]
    rows = [{"ordered_kv_records": pairs, "key": "key8", "value": "value8"}] * 4
    write_rows(tmp_path, "kv_retrieval_75.jsonl", rows)
    shown = [json.loads(row.prompt.preamble.partition("JSON data:\n")[2]) for row in examples("kv:3", tmp_path)]
    assert [list(found).index("key8") for found in shown] == [0, 1, 2, 0]
    assert all(len(found) == 3 and found["key8"] == "value8" for found in shown)
    with pytest.raises(BenchmarkDataError, match=r"Line 1 .* has 9 pairs of the 10 asked for"):
        examples("kv:10", tmp_path)


def test_passages_become_documents(tmp_path: Path) -> None:
    context = "Passage 1:\nOne. NEWLINE_CHAR Two.\nPassage 2:\nThree about Passage 9: no heading."
    write_rows(tmp_path, "multi_news.jsonl", [{"context": context, "answers": ["sum"]}])
    (row,) = examples("multi_news", tmp_path)
    first, second = row.prompt.documents
    assert first == "Passage 1:\nOne. \n Two.\n" and second.startswith("Passage 2:") and second.endswith("heading.")


def test_the_needle_prompt_has_the_exact_length_and_the_needle_its_depth(tmp_path: Path) -> None:
    lines = [" ".join(f"w{i}x{j}" for j in range(12)) + ".\n" for i in range(200)]
    (tmp_path / "wikitext2_valid.txt").write_text("".join(lines))
    found = examples("needle:300", tmp_path, 8)
    depths = []
    for row in found:
        assert count(row.prompt) == 300
        (code,) = row.answers
        assert row.prompt.preamble.count(f"The secret code is {code}.") == 1
        depths.append(row.prompt.preamble.index("The secret code is") / len(row.prompt.preamble))
    assert len({row.answers for row in found}) == 8
    assert len({row.prompt.preamble[70:100] for row in found}) == 8
    for i, depth in enumerate(depths):
        assert depth == pytest.approx(0.1 + 0.9 * (i * 0.618034 % 1), abs=0.12)


def test_a_needle_longer_than_its_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text("a b c.\n" * 50)
    with pytest.raises(InvalidOptionError, match="leaves no room for a text"):
        examples("needle:20", tmp_path)


@pytest.mark.parametrize("name", ["nq", "nq:0", "nq:x", "squad:3", "nothing", "", "needle:-5", "kv:²"])
def test_a_name_that_is_no_task(name: str) -> None:
    with pytest.raises(InvalidOptionError, match="choose among nq:DOCUMENTS, squad"):
        parse_task(name)


def test_missing_and_damaged_data_are_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkDataError, match=r"is not a folder; name the one"):
        examples("squad", tmp_path / "no")
    with pytest.raises(BenchmarkDataError, match=r"has no squad\.jsonl; put the file there"):
        examples("squad", tmp_path)
    for content, words in [
        ("{", r"Line 1 of .*squad\.jsonl is not JSON"),
        ('{"query": "x"}', "Line 1 .* has no 'answers'"),
        ("[1]", "Line 1 .* has no 'query'"),
        ('\n{"query": "no mark", "answers": []}', "has no question in its query"),
        ("\n", "holds no text"),
    ]:
        (tmp_path / "squad.jsonl").write_text(content)
        with pytest.raises(BenchmarkDataError, match=words):
            examples("squad", tmp_path)
    (tmp_path / "wikitext2_valid.txt").write_text(" \n")
    with pytest.raises(BenchmarkDataError, match=r"wikitext2_valid\.txt holds no text"):
        read_text(tmp_path, "wikitext2_valid.txt")
    row = {"question": "q", "answers": ["a"], "ctxs": [{"title": "t", "text": "x"}]}
    write_rows(tmp_path, "nq_open_oracle.jsonl", [row])
    with pytest.raises(BenchmarkDataError, match=r"Line 1 .* has no gold passage"):
        examples("nq:1", tmp_path)


def test_the_haystack_is_running_text() -> None:
    marked = " \n = Robert <unk> = \n \n Robert <unk> acts . He had a role = 1 . \n \n = = Film = = \n \n In 2000 . \n"
    assert running(marked) == " Robert acts . He had a role = 1 . \n In 2000 . \n"
