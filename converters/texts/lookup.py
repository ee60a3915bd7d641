"""Lookup text: windows in which what is asked for stands in the text before, so that a model has to find it there.

Four kinds of items: a passage of which sentences are cited again; a list of keys and values some of which are asked
for; a passage with questions and answers behind it, as plain text; and a chat about a passage, in the model's template.
Answers are words or sentences copied from the passage. Nothing is sampled from a model: distilled on these windows, a
student learns where its teacher looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from russet.converters.texts import questions
from russet.converters.texts.passages import Passages
from russet.engine.chat_template import ChatTemplate
from russet.engine.errors import TrainingDataError
from russet.engine.tokenizer.base import Tokenizer

SHARES = {"cite": 0.2, "pairs": 0.2, "read": 0.2, "chat": 0.4}
BY_RULE = 0.5
"""How often a question is one of questions.py, where a sentence has one."""

PIECES = ((1, 0.5), (2, 0.35), (3, 0.15))
"""How many items a window holds, and how often: answers are far and near."""

FEWEST = 256
"""Tokens of the shortest item."""

MOST_QUESTIONS = 4
MOST_ENTRIES = 60
TRIES = 100

_CUES = (
    'As the text above says, "{}"',
    'To repeat a sentence from above: "{}"',
    'The passage contains this sentence: "{}"',
    'We read before: "{}"',
    "Quote: {}",
    "> {}",
    'Earlier in this text it was said that "{}"',
)
_READ = (
    "Read this text and answer the questions about it.",
    "Answer from the passage below.",
    "Here is a passage. I will ask you about it.",
    "Use only the following text to answer.",
    "Text:",
    "Please look at this passage:",
)
_BLANK = (
    "Which words are missing in this sentence of the text? {}",
    "Fill in the blank as the passage has it: {}",
    "Complete from the text: {}",
    "What stands in the gap? {}",
)
_MENTIONS = (
    "Quote the sentence that mentions {}.",
    'Which sentence has the words "{}"?',
    "What does the text say about {}? Answer with its own words.",
)
_BEGINS = (
    'How does the sentence go on that begins with "{}"?',
    'Continue the sentence from the passage: "{} ..."',
)
_FOLLOWS = (
    'Which sentence follows after this one: "{}"',
    'What comes right after "{}" in the text?',
)


_STYLES = (
    ("", "{}: {}", "", "{}: {}"),
    ("The list:", "The code of {} is {}.", "Questions:", "What is the code of {}? {}"),
    ("| name | entry |\n|---|---|", "| {} | {} |", "", "The entry of {} is {}."),
    ("{", '  "{}": "{}",', "}", '"{}" -> "{}"'),
    ("", "{} has {}.", "", "Q: What does {} have?\nA: {}"),
    ("", "{} = {}", "", "print({})  # {}"),
    ("Dictionary", "- {}: {}", "Look up", "{} is {}"),
)
"""Opening, a line, closing, and a line that asks for it again."""


@dataclass(frozen=True)
class Asked:
    """A sentence of a text, a question about it, and the answer, words of the text."""

    sentence: str
    question: str
    answer: str


class Lookup:
    """Windows of `length` tokens that end with the end-of-text token `end`; the template may be missing."""

    def __init__(
        self, passages: Passages, tokenizer: Tokenizer, template: ChatTemplate | None, end: int, length: int
    ) -> None:
        self._passages, self._tokenizer, self._template = passages, tokenizer, template
        self._end, self._length = end, length
        self._kinds: dict[str, Callable[[int, np.random.Generator], list[int]]] = {
            "cite": self._cite,
            "pairs": self._pairs,
            "read": self._read,
        }
        if template is not None:
            self._kinds["chat"] = self._chat

    def window(self, rng: np.random.Generator) -> np.ndarray:
        """Ids [length] of one or more items, each with the end-of-text token behind it."""
        most = max(1, self._length // FEWEST)
        pieces = min(most, int(rng.choice([n for n, _ in PIECES], p=[share for _, share in PIECES])))
        cuts = np.sort(rng.integers(0, self._length - pieces * FEWEST + 1, pieces - 1)) if pieces > 1 else []
        starts = [0, *(int(cut) + FEWEST * (i + 1) for i, cut in enumerate(cuts)), self._length]
        shares = np.array([SHARES[kind] for kind in self._kinds])
        ids: list[int] = []
        for start, stop in pairwise(starts):
            kind = list(self._kinds)[rng.choice(len(self._kinds), p=shares / shares.sum())]
            ids += [*self._kinds[kind](stop - start - 1, rng), self._end]
        return np.array(ids, dtype=np.int64)

    def _cite(self, room: int, rng: np.random.Generator) -> list[int]:
        """A passage, and sentences of it again."""
        cue = str(rng.choice(_CUES))
        return self._asked_of(
            [], lambda asked: "\n\n" + "\n".join(cue.format(item.sentence) for item in asked), room, rng
        )

    def _read(self, room: int, rng: np.random.Generator) -> list[int]:
        """A passage, and questions and answers about it, as reading tests print them."""
        return self._asked_of(
            self._ids("Background: "),
            lambda asked: "".join(f"\n\nQuestion: {item.question}\n\nAnswer: {item.answer}" for item in asked),
            room,
            rng,
        )

    def _chat(self, room: int, rng: np.random.Generator) -> list[int]:
        """A conversation about the passage in its first message."""
        assert self._template is not None
        opening, _ = self._template.frame()
        return self._asked_of(self._ids(f"{opening}{rng.choice(_READ)}\n\n"), self._turns, room, rng)

    def _turns(self, asked: list[Asked]) -> str:
        """What follows the passage: the first question, its answer, further turns."""
        assert self._template is not None
        messages = []
        for item in asked:
            messages += [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        text = self._template.render(messages, add_generation_prompt=False)
        return "\n\n" + text[text.index(asked[0].question) :]

    def _asked_of(
        self, head: list[int], tail: Callable[[list[Asked]], str], room: int, rng: np.random.Generator
    ) -> list[int]:
        """Head, a passage, and as much asked about it as goes into a third; `room` tokens in all."""
        most, count = max(100, room // 3), int(rng.integers(1, MOST_QUESTIONS + 1))
        for _ in range(TRIES):
            # Questions are about the part behind `most`, since what they take is cut from the front.
            passage = self._passages.draw(room - len(head) - 1, rng, 2, most)
            asked: list[Asked] = []
            ending: list[int] = []
            for i in rng.permutation(len(passage.sentences))[:count]:
                asked.append(_question(passage.sentences, int(i), rng))
                longer = self._ids(tail(asked))
                if len(longer) > most:
                    break
                ending = longer
            if ending:
                return head + passage.tokens[len(head) + len(ending) - room :] + ending
        raise TrainingDataError("No sentence was short enough to be asked for; give running text in English.")

    def _pairs(self, room: int, rng: np.random.Generator) -> list[int]:
        """A list of keys and values, some of them asked for again, behind running text that fills the room."""
        passage = self._passages.draw(room - 1, rng)
        keys, values = _entries(self._tokenizer.decode(passage.tokens), rng)
        opening, line, closing, ask = _STYLES[rng.integers(len(_STYLES))]
        share, order, ids = rng.uniform(0.3, 0.9), rng.permutation(len(keys)), self._ids("\n\n")
        for count in range(2, len(keys) + 1):
            lines = [line.format(keys[i], values[i]) for i in range(count)]
            asked = [ask.format(keys[i], values[i]) for i in order if i < count][: max(2, count // 3)]
            longer = self._ids("\n".join([f"\n\n{opening}", *lines, f"{closing}\n", *asked]).replace("\n\n\n", "\n\n"))
            if len(longer) > share * room:
                break
            ids = longer
        return passage.tokens[len(ids) - room :] + ids

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _question(sentences: list[str], at: int, rng: np.random.Generator) -> Asked:
    """Something that a sentence of a passage answers."""
    sentence = sentences[at]
    if rng.random() < BY_RULE and (found := questions.asked(sentence, rng)) is not None:
        return Asked(sentence, *found)
    words = sentence.split()
    kind = rng.integers(4)
    if kind == 0:
        start = int(rng.integers(2, len(words) - 1))
        stop = min(len(words), start + int(rng.integers(1, 4)))
        answer = _bare(" ".join(words[start:stop]))
        if answer:
            gap = " ".join([*words[:start], "____", *words[stop:]])
            return Asked(sentence, str(rng.choice(_BLANK)).format(gap), answer)
    if kind == 1:
        start = int(rng.integers(0, len(words) - 3))
        mention = _bare(" ".join(words[start : start + int(rng.integers(2, 5))]))
        if len(mention) >= 10 and sum(mention in other for other in sentences) == 1:
            return Asked(sentence, str(rng.choice(_MENTIONS)).format(mention), sentence)
    if kind == 2 and at + 1 < len(sentences):
        return Asked(sentence, str(rng.choice(_FOLLOWS)).format(sentence), sentences[at + 1])
    begin = max(3, len(words) // 3)
    return Asked(sentence, str(rng.choice(_BEGINS)).format(" ".join(words[:begin])), " ".join(words[begin:]))


def _bare(words: str) -> str:
    return words.strip(" .,;:!?\"'“”‘’()—-_")


def _entries(text: str, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Keys, each once, and values of one kind: numbers, codes, or words."""
    words = sorted({word.lower() for word in re.findall(r"\b[A-Za-z]{4,12}\b", text)})
    picked = [str(word) for word in rng.permutation(words)][: 2 * MOST_ENTRIES]
    keys, others = picked[::2], picked[1::2]
    if rng.random() < 0.5:
        keys = [key.capitalize() for key in keys]
    keys = keys[: len(others)]
    kind, digits = rng.integers(3), int(rng.integers(2, 6))
    if kind == 0:
        return keys, others
    numbers = [str(rng.integers(10 ** (digits - 1), 10**digits)) for _ in others]
    if kind == 1:
        return keys, numbers
    return keys, [f"{other[:2].upper()}-{number}" for other, number in zip(others, numbers, strict=True)]
