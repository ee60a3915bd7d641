"""Scores of a tiny model against plain computations, a row and a step at a time, that share no code with them.

The tokenizer is one token a byte, so that its ids can be had without it. A few letters are made likely, so that what
the model draws is readable and can be right.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import string
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import pre_tokenizers

import russet
from russet.bench.quality import Scores, evaluate
from russet.bench.tasks.base import Example, TokenCount
from russet.bench.tasks.needle import Needle
from russet.bench.tasks.quality import Answered

ROWS = 50
LIKELY = " abcdeint\n.,"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LETTERS = "abcdefghijklmnoprst   "


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
SIGNS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
BYTES = {ALPHABET.index(sign): byte for byte, sign in SIGNS.items()}


def ids(text: str) -> list[int]:
    """One token a byte: the place of the byte's sign in the alphabet."""
    return [ALPHABET.index(SIGNS[byte]) for byte in text.encode()]


EOS = 258


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> russet.Model:
    folder = tmp_path_factory.mktemp("likely") / "model"
    shutil.copytree(tiny_folder, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    table = np.array(weights["model.embed_tokens.weight"])
    table[ids(LIKELY)] *= 3
    weights["model.embed_tokens.weight"] = mx.array(table)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return russet.load(folder)


def logs(model: russet.Model, tokens: list[int]) -> np.ndarray:
    """log p of the token that follows each, float64 [tokens, vocab]: one pass over one row."""
    logits = model.decoder.extend(mx.array([tokens]), model.decoder.new_cache(), logits=len(tokens))
    found = np.array(logits[0], dtype=np.float64)
    found -= found.max(axis=-1, keepdims=True)
    return found - np.log(np.exp(found).sum(axis=-1, keepdims=True))


def follow(model: russet.Model, context: str, continuation: str) -> tuple[float, bool]:
    """log p of a continuation, and whether it is what greedy decoding draws."""
    before, after = ids(context), ids(continuation)
    found = logs(model, before + after)[len(before) - 1 : -1]
    total = sum(row[token] for row, token in zip(found, after, strict=True))
    return float(total), [int(row.argmax()) for row in found] == after


def reply(model: russet.Model, prompt: list[int], limit: int, stops: tuple[str, ...]) -> str:
    """Greedy decoding, a token at a time, cut before the first stop text."""
    cache = model.decoder.new_cache()
    logits, text = model.decoder.extend(mx.array([prompt]), cache), b""
    for _ in range(limit):
        token = int(np.array(logits[0, -1]).argmax())
        if token == EOS:
            break
        text += bytes([BYTES[token]]) if token in BYTES else b""
        logits = model.decoder.extend(mx.array([[token]]), cache)
    shown = text.decode(errors="replace")
    for stop in stops:
        shown = shown.split(stop)[0]
    return shown


def words(random: Random, least: int, most: int) -> str:
    """Made-up text that begins and ends with a letter."""
    inner = "".join(random.choice(LETTERS) for _ in range(random.randint(least, most)))
    return re.sub(" +", " ", f"a{inner}e")


def write(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(scores: Scores, expected: list[dict[str, float]]) -> None:
    """Rows and figures: proportions and means are plain means, perplexities those of the sums."""
    assert len(scores.rows) == len(expected) == ROWS
    for row, wanted in zip(scores.rows.values(), expected, strict=True):
        assert row.values == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    estimates = scores.estimates()
    assert list(estimates) == [metric.name for metric in scores.metrics]
    for metric in scores.metrics:
        total = sum(row[metric.column] for row in expected)
        weight = sum(row[metric.weight] if metric.weight else 1 for row in expected)
        by_kind = {
            "proportion": lambda mean: mean,
            "mean": lambda mean: mean,
            "perplexity": lambda mean: math.exp(-mean),
            "bits": lambda mean: -mean / math.log(2),
        }
        found = estimates[metric.name]
        assert found.value == pytest.approx(by_kind[metric.kind](total / weight), rel=1e-4)
        assert found.low <= found.value <= found.high


def varied(scores: Scores, column: str) -> bool:
    """Whether both right and wrong rows are there, without which a comparison would say little."""
    return len({row.values[column] for row in scores.rows.values()}) > 1


@pytest.mark.parametrize("name", ["arc_easy", "piqa", "hellaswag", "boolq"])
def test_multiple_choice(model: russet.Model, tmp_path: Path, name: str) -> None:
    random, rows, expected = Random(name), [], []
    for _ in range(ROWS):
        texts = [words(random, 1, 20) for _ in range(2 if name == "piqa" else 4)]
        right, asked = random.randrange(len(texts)), words(random, 5, 60)
        if name == "arc_easy":
            choices = {"text": texts, "label": ["A", "B", "C", "D"]}
            rows.append({"question": asked, "choices": choices, "answerKey": "ABCD"[right]})
            context = "Question: " + asked + "\nAnswer:"
        elif name == "piqa":
            rows.append({"goal": asked, "sol1": texts[0], "sol2": texts[1], "label": right})
            context = "Question: " + asked + "\nAnswer:"
        elif name == "hellaswag":
            rows.append({"activity_label": "Do", "ctx_a": asked, "ctx_b": "he", "endings": texts, "label": str(right)})
            context = "Do: " + asked + " He"
        else:
            texts, right = ["no", "yes"], right % 2
            rows.append({"passage": asked, "question": "is it", "answer": bool(right)})
            context = asked + "\nQuestion: is it?\nAnswer:"
        found = [follow(model, context, " " + text)[0] for text in texts]
        best = max(range(len(texts)), key=lambda i: found[i])
        longest = max(range(len(texts)), key=lambda i: found[i] / len(texts[i]))
        expected.append({"acc": float(best == right), "acc_norm": float(longest == right)})
    write(tmp_path, f"{name}.jsonl", rows)
    scores = evaluate(model, [name], tmp_path)[name]
    check(scores, expected)
    assert varied(scores, "acc")


def test_lambada(model: russet.Model, tmp_path: Path) -> None:
    random, rows, expected = Random("lambada"), [], []
    while len(rows) < ROWS:
        context = words(random, 10, 80)
        drawn = reply(model, ids(context), 2, ())
        # Every second answer is what the model goes on with, if it goes on with a word at all.
        if len(rows) % 2 and not re.fullmatch(" [a-z]+", drawn):
            continue
        answer = drawn[1:] if len(rows) % 2 else words(random, 1, 4)
        rows.append({"query": context, "answer": [answer]})
        total, greedy = follow(model, context, " " + answer)
        expected.append({"acc": float(greedy), "log_probability": total})
    write(tmp_path, "lambada.jsonl", rows)
    scores = evaluate(model, ["lambada"], tmp_path)["lambada"]
    check(scores, expected)
    assert varied(scores, "acc")


def test_wikitext(model: russet.Model, tmp_path: Path) -> None:
    random, text, expected, window = Random("wikitext"), " \n", [], 96
    for i in range(ROWS):
        body = [words(random, 5, 60) + " , and " + words(random, 5, 60) + " . " for _ in range(random.randint(1, 6))]
        article = f" = Title{i} = \n \n " + "\n ".join(body) + "\n"
        text += article
        # The last article keeps the file's final line break; the others lose theirs to the next heading.
        whole = article if i == ROWS - 1 else article[:-1]
        shown = whole.replace(" , ", ", ").replace(" . ", ". ").replace(" \n", "\n").replace("\n ", "\n")
        expected.append(rolling(model, shown, window) | {"words": len(re.split(r"\s+", whole)), "bytes": len(whole)})
    (tmp_path / "wikitext2_valid.txt").write_text(text)
    check(evaluate(model, [f"wikitext:{window}"], tmp_path)[f"wikitext:{window}"], expected)


def rolling(model: russet.Model, text: str, window: int) -> dict[str, float]:
    """Every token once, each in the window of its number; the last window reaches back."""
    tokens = ids(text)
    whole = later = 0.0
    counted = 0
    for number in range(math.ceil(len(tokens) / window)):
        new = range(number * window, min((number + 1) * window, len(tokens)))
        begin = max(0, new.stop - window)
        seen = [EOS if begin == 0 else tokens[begin - 1], *tokens[begin : new.stop - 1]]
        found = logs(model, seen)
        for t in new:
            log = float(found[t - begin, tokens[t]])
            whole += log
            # The window holds one token more than it scores; what lies behind its middle continues the rest.
            if t - begin + 1 >= (len(seen) + 1) // 2:
                later += log
                counted += 1
    return {"log_probability": whole, "continuation_log_probability": later, "continuation_tokens": counted}


def test_squad(model: russet.Model, tmp_path: Path) -> None:
    random, rows, expected = Random("squad"), [], []
    for i in range(ROWS):
        title, background, question = words(random, 3, 9), words(random, 20, 120), words(random, 9, 30)
        prompt = f"Title: {title}\n\nBackground: {background}\n\nQuestion: {question}\n\nAnswer:"
        drawn = reply(model, ids(prompt), 48, ("\n",))
        parts = drawn.split()
        answers = [words(random, 2, 5), " ".join(parts[i % 3 :][:2]).upper() or "x"]
        if i % 5 == 4:
            answers = [drawn.strip() or "x"]
        if i % 7 == 6:
            answers = ["nothing of it"]
        query = f"Title: {title}\nBackground: {background}\nQuestion: {question}\nAnswer:"
        rows.append({"query": query, "answers": answers})
        expected.append(
            {
                "contains": float(any(answer.lower() in drawn.lower() for answer in answers)),
                "exact": float(any(plain(answer) == plain(drawn) for answer in answers)),
                "f1": max(f1(plain(drawn), plain(answer)) for answer in answers),
            }
        )
    write(tmp_path, "squad.jsonl", rows)
    scores = evaluate(model, ["squad"], tmp_path)["squad"]
    check(scores, expected)
    assert all(varied(scores, column) for column in ("contains", "exact", "f1"))


def plain(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1(one: list[str], other: list[str]) -> float:
    shared = sum(min(count, Counter(other)[word]) for word, count in Counter(one).items())
    if not shared:
        return 0.0
    precision, recall = shared / len(one), shared / len(other)
    return 2 * precision * recall / (precision + recall)


def test_triviaqa(model: russet.Model, tmp_path: Path) -> None:
    random, rows, expected = Random("trivia"), [], []
    for i in range(ROWS):
        question = words(random, 9, 60)
        drawn = reply(model, ids(f"Question: {question}?\nAnswer:"), 32, ("\n", ".", ",")).strip()
        right = i % 2 == 0
        aliases = ["other", drawn.upper().replace(" ", " '") if right else drawn + "x"]
        rows.append({"question": question, "answer": {"value": "v", "aliases": aliases}})
        expected.append({"exact_match": float(right)})
    write(tmp_path, "triviaqa.jsonl", rows)
    check(evaluate(model, ["triviaqa"], tmp_path)["triviaqa"], expected)


def test_questions_over_documents(model: russet.Model, tmp_path: Path) -> None:
    """nq:1 goes through the chat template and is right where whole words of the reply are an answer."""
    random, rows, expected = Random("nq"), [], []
    told = "Write a high-quality answer for the given question using only the provided search results "
    told += "(some of which might be irrelevant)."
    for i in range(ROWS):
        question, title, text = words(random, 5, 20), words(random, 3, 9), words(random, 20, 60)
        turn = f"{told}\n\nDocument (Title: {title}) {text}\n\nQuestion: {question}\nAnswer:"
        prompt = [257, *ids(f"user\n{turn}"), EOS, *ids("\n"), 257, *ids("assistant\n")]
        drawn = plain(reply(model, prompt, 24, ()))
        answer = " ".join(drawn[1:3]) if i % 2 and len(drawn) > 1 else words(random, 3, 6)
        rows.append(
            {"question": question, "answers": [answer], "ctxs": [{"title": title, "text": text, "isgold": True}]}
        )
        hit = any(drawn[k : k + len(plain(answer))] == plain(answer) for k in range(len(drawn)))
        expected.append({"score": float(hit)})
    write(tmp_path, "nq_open_oracle.jsonl", rows)
    scores = evaluate(model, ["nq:1"], tmp_path)["nq:1"]
    check(scores, expected)
    assert varied(scores, "score")


class Needles(Needle):
    """Prompts that are made once, and short replies."""

    generate = 8

    def __init__(self, model: russet.Model, data: Path) -> None:
        super().__init__(280)
        self.made = list(islice(super().examples(data, lambda prompt: len(model.prepare(prompt).tokens)), ROWS))

    def examples(self, data: Path, count: TokenCount) -> Iterator[Example]:
        return iter(self.made)


def test_needles(model: russet.Model, tmp_path: Path) -> None:
    """The prompts are the benchmark's own; replies are those of greedy decoding, and their scores follow."""
    random = Random("needle")
    text = "".join(f"{words(random, 20, 60)}. {words(random, 20, 60)}.\n" for _ in range(60))
    (tmp_path / "wikitext2_valid.txt").write_text(text)
    task = Needles(model, tmp_path)
    scores = evaluate(model, [Answered(task)], tmp_path)["needle:280"]
    drawn = [reply(model, model.encode(example.prompt), 8, ()) for example in task.made]
    assert [row.reply for row in scores.rows.values()] == drawn
    hits = [example.answers[0] in text for example, text in zip(task.made, drawn, strict=True)]
    check(scores, [{"score": float(hit)} for hit in hits])
