from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from russet.bench.tasks.completions import squad_values, trivia_values
from russet.bench.tasks.items import Continuations, Drawn, RunningText, Scored
from russet.bench.tasks.quality import parse_quality_task
from russet.bench.tasks.wikitext import articles, detokenised
from russet.engine.errors import BenchmarkDataError, InvalidOptionError


def items(name: str, folder: Path, rows: list[dict] | str) -> list:
    task = parse_quality_task(name)
    file = "wikitext2_valid.txt" if isinstance(rows, str) else f"{name}.jsonl"
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / file).write_text(text, encoding="utf-8")
    return list(task.items(folder, lambda prompt: 1))


def said(*logs: float) -> Sequence[Scored]:
    return [Scored(log, greedy=log > -1) for log in logs]


def test_arc_puts_the_question_and_asks_for_the_choices(tmp_path: Path) -> None:
    row = {"question": "Why?", "choices": {"text": ["yes", "a long one", "no"], "label": ["1", "B", "3"]}}
    (item,) = items("arc_easy", tmp_path, [row | {"answerKey": "B"}])
    assert isinstance(item, Continuations)
    assert item.context == "Question: Why?\nAnswer:" and item.continuations == (" yes", " a long one", " no")
    # The choice's own characters count, not the space before it: -9/10 beats -3/3 and -4/2.
    assert item.values(said(-3, -9, -4)) == {"acc": 0.0, "acc_norm": 1.0}
    assert item.values(said(-10, -9, -9.5)) == {"acc": 1.0, "acc_norm": 1.0}


def test_piqa_and_boolq_read_their_labels(tmp_path: Path) -> None:
    (piqa,) = items("piqa", tmp_path, [{"goal": "Go", "sol1": "left", "sol2": "right", "label": 1}])
    assert piqa.context == "Question: Go\nAnswer:" and piqa.continuations == (" left", " right")
    assert piqa.values(said(-2, -1))["acc"] == 1.0
    (boolq,) = items("boolq", tmp_path, [{"passage": "P.", "question": "is it", "answer": False}])
    assert boolq.context == "P.\nQuestion: is it?\nAnswer:" and boolq.continuations == (" no", " yes")
    assert boolq.values(said(-1, -2)) == {"acc": 1.0, "acc_norm": 1.0}


def test_hellaswag_cleans_its_texts(tmp_path: Path) -> None:
    row = {"activity_label": "Cook", "ctx_a": "One [title] two.", "ctx_b": "then a", "endings": ["x [step] y", "z"]}
    (item,) = items("hellaswag", tmp_path, [row | {"label": "1"}])
    assert item.context == "Cook: One. two. Then a"
    assert item.continuations == (" x y", " z")


def test_lambada_scores_the_last_word(tmp_path: Path) -> None:
    (item,) = items("lambada", tmp_path, [{"query": "and so on,", "answer": ["Shane"]}])
    assert (item.context, item.continuations) == ("and so on,", (" Shane",))
    assert item.values(said(-0.5)) == {"acc": 1.0, "log_probability": -0.5}


def test_squad_is_put_as_the_harness_does(tmp_path: Path) -> None:
    query = "Title: T\nBackground: Some\ntext.\nQuestion: Who?\nAnswer:"
    (item,) = items("squad", tmp_path, [{"query": query, "answers": ["the Beatles"]}])
    assert isinstance(item, Drawn) and (item.limit, item.stop) == (48, ("\n",))
    assert item.prompt == "Title: T\n\nBackground: Some\ntext.\n\nQuestion: Who?\n\nAnswer:"
    assert item.values(" THE BEATLES, of course") == {"contains": 1.0, "exact": 0.0, "f1": 0.5}


@pytest.mark.parametrize(
    ("reply", "answers", "contains", "exact", "f1"),
    [
        (" in 1932", ["93"], 1, 0, 0),
        (" The cat!", ["a cat"], 0, 1, 1),
        (" red red cat", ["red cat", "blue"], 1, 0, 0.8),
        ("", ["x"], 0, 0, 0),
        (" 1.5 (approx.)", ["1.5 ("], 1, 0, 2 / 3),
    ],
)
def test_squad_scores(reply: str, answers: list[str], contains: int, exact: int, f1: float) -> None:
    assert squad_values(reply, answers) == {"contains": contains, "exact": exact, "f1": pytest.approx(f1)}


def test_triviaqa_wants_one_of_the_spellings(tmp_path: Path) -> None:
    row = {"question": "Who?", "answer": {"value": "U.K.", "aliases": ["U.K.", "Great-Britain"]}}
    (item,) = items("triviaqa", tmp_path, [row])
    assert item.prompt == "Question: Who??\nAnswer:" and item.stop == ("\n", ".", ",")
    assert item.values(" GreatBritain")["exact_match"] == 1
    assert trivia_values(" uk ", ["U.K."]) == {"exact_match": 1}
    assert trivia_values("the uk", ["U.K."]) == {"exact_match": 0}


TEXT = """ \n = First = \n \n One , two . \n \n = = Part = = \n \n 1 @.@ 5 \n = Second = \n \n ( ä ) " b " 's \n"""


def test_articles_begin_at_headings_of_the_first_level(tmp_path: Path) -> None:
    first, second = articles(TEXT)
    assert first == " = First = \n \n One , two . \n \n = = Part = = \n \n 1 @.@ 5 "
    assert second == ' = Second = \n \n ( ä ) " b " \'s \n'
    found = items("wikitext", tmp_path, TEXT)
    assert all(isinstance(item, RunningText) for item in found)
    # 15 and 10 words, and as the harness counts the empty ones at both ends; bytes of the file's own text.
    assert [item.values for item in found] == [
        {"words": 17, "bytes": len(first)},
        {"words": 12, "bytes": len(second) + 1},
    ]
    assert found[0].window == 2048 and found[0].id == "wikitext/0"
    assert items("wikitext:64", tmp_path, TEXT)[1].window == 64


def test_detokenised_text_reads_like_text() -> None:
    assert detokenised(" a , b . c @-@ d 1 @,@ 000 ; x : y") == " a, b. c-d 1,000; x: y"
    assert detokenised("( x ) [ y ] \" z \" said ' w ' it 's") == "(x) [y] \"z\" said 'w' it's"
    assert detokenised(" = = = Deep = = = \n = = B = = \n 5 ° C \n") == " === Deep ===\n== B ==\n5°C\n"
    assert detokenised("the dogs ' food") == "the dogs' food"


@pytest.mark.parametrize("name", ["nothing", "wikitext:", "wikitext:1", "lambada:3", "squad:2", "nq", "needle:x", ""])
def test_a_task_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"There is no task .* wikitext, lambada, arc_easy"):
        parse_quality_task(name)


def test_tasks_of_the_prefill_benchmark_serve_as_well() -> None:
    assert parse_quality_task("needle").name == "needle:1024"
    task = parse_quality_task("nq:1")
    assert task.name == "nq:1" and [metric.name for metric in task.metrics] == ["score"]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("arc_easy", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "no row of arc"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, "not among its choices"),
        ("piqa", {"goal": "g", "sol1": "a"}, "has no 'sol2'"),
        ("lambada", {"query": "q", "answer": ["a", "b"]}, "one word as its answer"),
        ("squad", {"query": "Title: T\nQuestion: Q\nAnswer:", "answers": []}, "no background"),
        ("triviaqa", {"question": "q", "answer": {}}, "no aliases"),
    ],
)
def test_a_row_that_is_none_is_named(name: str, row: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkDataError, match=f"Line 1 .*{words}"):
        items(name, tmp_path, [row])
