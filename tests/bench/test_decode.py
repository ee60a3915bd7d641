from __future__ import annotations

import pytest

from russet.bench.decode import WARM_UP_TOKENS, LengthResult, order_of_round, run_decode
from russet.bench.prompts import Prompt

PROMPTS = [Prompt("", [1] * 10), Prompt("", [1] * 20)]


def test_the_order_is_reversed_every_other_round(fake) -> None:
    pair = [fake("a", [], []), fake("b", [], [])]
    names = ["".join(c.name for c in order_of_round(pair, number)) for number in range(5)]
    assert names == ["ab", "ba", "ab", "ba", "ab"]


def test_runs_alternate_after_a_short_warm_up_that_is_not_counted(fake) -> None:
    log: list = []
    contenders = [fake("a", log, [9.0, 1.0, 2.0] * 2), fake("b", log, [9.0, 3.0, 4.0] * 2)]
    results: list[LengthResult] = []
    run_decode(contenders, PROMPTS, generate=32, repeat=2, results=results)
    assert "".join(name for name, _, _ in log) == "ababba" * 2
    assert [entry[1:] for entry in log[:4]] == [(10, WARM_UP_TOKENS), (10, WARM_UP_TOKENS), (10, 32), (10, 32)]
    assert [result.prompt_tokens for result in results] == [10, 20]
    assert [run.timings.prefill_s for run in results[0].runs["b"]] == [3.0, 4.0]


def test_an_interruption_keeps_the_finished_runs(fake) -> None:
    class Stubborn(fake):
        def run(self, tokens, generate):
            if len(self.log) == 5:
                raise KeyboardInterrupt
            return super().run(tokens, generate)

    log: list = []
    results: list[LengthResult] = []
    contenders = [Stubborn(name, log, [1.0] * 9) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        run_decode(contenders, PROMPTS, generate=4, repeat=3, results=results)
    assert {name: len(runs) for name, runs in results[0].runs.items()} == {"a": 1, "b": 2}
    assert results[0].complete and not LengthResult(10, 4, {"a": [], "b": []}).complete


def test_the_first_difference_is_an_index_into_what_was_generated(fake) -> None:
    same, other = fake("a", [], [1.0, 1.0]), fake("b", [], [1.0], token=2)
    runs = {"a": [same.run([1], 4)], "a2": [same.run([1], 4)], "b": [other.run([1], 4)]}
    runs["b"][0].tokens[0] = 1
    result = LengthResult(1, 4, runs)
    assert result.first_difference("a", "a2") is None
    assert result.first_difference("a", "b") == 1
