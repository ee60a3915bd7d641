"""Questions by rules: the answer stands in the sentence, and not in the question."""

from __future__ import annotations

import numpy as np
import pytest

from russet.converters.texts.questions import asked

SENTENCES = {
    "The town of Marlow was rebuilt in 1862 after a great fire.": ("1862", "rebuilt after a great fire?"),
    "Seven of them had crossed the river with twelve horses before dawn.": ("twelve", "How many horses before dawn?"),
    "The heart is the organ that pumps blood.": ("the organ that pumps blood", "What is the heart?"),
    "Anna Petrova won the first prize of the academy.": ("Anna Petrova", "Who won the first prize of the academy?"),
    "The ships stayed for the winter near Lisbon with all their men.": ("near Lisbon", "Where"),
    "They waited at the gate for a long time because the key was lost.": ("because the key was lost", "Why is it that"),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_rule_finds_its_question(sentence: str) -> None:
    answer, question = SENTENCES[sentence]
    found = {asked(sentence, np.random.default_rng(seed)) for seed in range(60)}
    assert any(pair is not None and pair[1] == answer and question in pair[0] for pair in found), found
    for pair in found:
        assert pair is not None and pair[1] in sentence and pair[0].endswith("?")


def test_where_no_rule_fits_there_is_no_question() -> None:
    assert asked("so be it then", np.random.default_rng(0)) is None
