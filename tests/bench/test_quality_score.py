from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.bench import quality
from russet.bench.ours import Russet
from russet.bench.prefill_contenders import Contender
from russet.bench.quality import Scores, compare, evaluate
from russet.bench.quality_metrics import Metric
from russet.bench.quality_score import Said, behind, exactly, said_of
from russet.bench.quality_tokens import Span, continued, halved, windows
from russet.engine.errors import InvalidOptionError, WeightsError
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.lazyllm import LazyLLM
from russet.engine.prefill.pruning import Staged
from russet.models.config_file import read_config
from russet.models.decoder import Decoder
from russet.models.opening import Opened
from russet.models.runtimes.base import ForeignDecoder, PackageDecoder

PASSAGE = "The quick brown fox jumps over the lazy dog, and then it runs away into the dark green wood. "
CUTS = Staged({0.3: 0.55, 0.6: 0.3})
"""What `keep` of 0.3 leaves of a long prompt; prompts here are shorter than what it leaves at least."""


def spans(count: int, longest: int = 90) -> list[Span]:
    random = Random(3)
    found = []
    for _ in range(count):
        tokens = [random.randrange(256) for _ in range(random.randint(2, longest))]
        found.append(Span(tokens, random.randint(1, len(tokens) - 1)))
    return found


def around(model: russet.Model, decoder: Decoder | ForeignDecoder) -> russet.Model:
    """A model with another decoder in it."""
    config = decoder.config if isinstance(decoder, Decoder) else None
    opened = Opened(decoder, config, model.max_positions)
    return russet.Model("other", model.path, model.files, opened, model.tokenizer, 16, 0.0)


def close(one: Said, other: Said) -> bool:
    return np.allclose(one.logs, other.logs, atol=1e-4) and np.array_equal(one.greedy, other.greedy)


@pytest.mark.parametrize("pass_rows", [1, 100, 700, 10_000])
def test_the_size_of_a_pass_changes_nothing(tiny_model: russet.Model, pass_rows: int) -> None:
    found = spans(40)
    alone = [exactly(tiny_model, [span], 1)[0] for span in found]
    together = exactly(tiny_model, found, pass_rows)
    assert all(close(one, other) for one, other in zip(alone, together, strict=True))
    assert [len(said.logs) for said in together] == [len(span.continuation) for span in found]


@pytest.mark.parametrize("name", ["gemma3", "afm", "openelm"])
def test_windows_shared_rows_and_uneven_layers_are_batched_as_well(name: str, tiny_model: russet.Model) -> None:
    from russet.models.loading import load_decoder

    decoder = load_decoder(Path(__file__).parents[1] / "golden" / name)
    golden, most = around(tiny_model, decoder), decoder.config.vocab_size
    found = [
        Span([token % most for token in span.tokens], max(span.first, len(span.tokens) // 2)) for span in spans(12, 60)
    ]
    together = exactly(golden, found, 10_000)
    for span, said in zip(found, together, strict=True):
        (left,), _ = behind(golden, Exact(), span.context, [span.continuation])
        assert close(said, left)


class Package(PackageDecoder):
    """A package of chunks of 8 tokens, computed by a model of ours."""

    chunk, runtime = 8, "made up"

    def __init__(self, model: russet.Model) -> None:
        self.decoder, self.max_positions, self.vocab_size = model.decoder, model.max_positions, model.vocab_size

    def make_state(self) -> list[int]:
        return []

    def run(self, tokens: np.ndarray, position: int, state: list[int]) -> np.ndarray:
        state[position:] = tokens.tolist()
        logits = self.decoder.extend(mx.array([state]), self.decoder.new_cache())
        return np.array(logits[0, -1])


def test_packages_and_mlx_lm_score_as_our_own_decoder_does(tiny_model: russet.Model) -> None:
    pytest.importorskip("mlx_lm")
    from russet.models.fallback import load_foreign

    found = spans(12, 40)
    ours = exactly(tiny_model, found, 500)
    for decoder in (Package(tiny_model), load_foreign(tiny_model.path, read_config(tiny_model.path), "float32")):
        theirs = exactly(around(tiny_model, decoder), found, 500)
        assert all(close(one, other) for one, other in zip(ours, theirs, strict=True))


def test_continuations_behind_exact_prefill_are_those_of_one_pass(tiny_model: russet.Model) -> None:
    context = list(PASSAGE.encode())[:80]
    endings = [[5, 6, 7], [5], [200, 100, 3, 4, 90], [5, 6, 8]]
    left, prefilled = behind(tiny_model, Exact(chunk=32), context, endings)
    whole = exactly(tiny_model, [Span(context + ending, len(context)) for ending in endings], 10_000)
    assert all(close(one, other) for one, other in zip(left, whole, strict=True))
    assert prefilled.strategy == "exact"


def test_a_strategy_that_keeps_everything_prices_nothing(tiny_model: russet.Model) -> None:
    context, ending = list(PASSAGE.encode()), [5, 6, 7]
    (exact,), _ = behind(tiny_model, Exact(), context, [ending])
    (kept,), found = behind(tiny_model, LazyLLM(schedule=Staged({0.4: 1.0})), context, [ending])
    (pruned,), lossy = behind(tiny_model, LazyLLM(schedule=CUTS), context, [ending])
    assert close(exact, kept) and found.exact
    assert not close(exact, pruned) and not lossy.exact and np.isfinite(pruned.logs).all()


@pytest.mark.parametrize("revive", [0, 8])
def test_an_ending_does_not_know_of_the_one_before_it(tiny_model: russet.Model, revive: int) -> None:
    context, endings = list(PASSAGE.encode()), [[5, 6, 7], [5, 6, 9]]
    strategy = LazyLLM(schedule=CUTS, revive=revive)
    both, _ = behind(tiny_model, strategy, context, endings)
    for ending, said in zip(endings, both, strict=True):
        (alone,), prefilled = behind(tiny_model, strategy, context, [ending])
        assert close(alone, said)
        assert (prefilled.extend is not None) == (prefilled.work.revived > 0) == (revive > 0)


def test_int8_rows_are_scored_as_they_are_stored(tiny_folder: Path, tiny_model: russet.Model) -> None:
    small = russet.load(tiny_folder, kv_bits=8)
    found = spans(10)
    exact, rounded = exactly(tiny_model, found, 1000), exactly(small, found, 1000)
    apart = [np.abs(one.logs - other.logs).max() for one, other in zip(exact, rounded, strict=True)]
    assert 1e-4 < max(apart) < 0.2


def test_ids_that_the_model_has_no_row_for_are_refused(tiny_model: russet.Model) -> None:
    """As another model's tokenizer gives them; the first context is fine."""
    found = [Span([65, 66, 67], 1), Span([65, 49151, 67], 1)]
    with pytest.raises(InvalidOptionError, match="token id 49151"):
        exactly(tiny_model, found, 100)
    with pytest.raises(InvalidOptionError, match="token id 300"):
        behind(tiny_model, Exact(), [65, 66], [[67, 300]])
    with pytest.raises(InvalidOptionError, match="token id 259"):
        Russet(tiny_model, 0).run([65, 259], 2)


def test_a_model_that_overflows_is_named() -> None:
    with pytest.raises(WeightsError, match="not finite; compute in float32"):
        said_of(mx.array([[1.0, float("inf"), 0.0]]), mx.array([0]))


def test_a_context_ends_where_its_own_tokens_end(tiny_model: russet.Model) -> None:
    tokenizer = tiny_model.tokenizer
    span = continued(tokenizer, "ab ", " cd")
    assert span.context == tokenizer.encode("ab") and span.continuation == tokenizer.encode("  cd")
    alone = continued(tokenizer, "", "cd")
    assert alone.context == [258] and alone.continuation == tokenizer.encode("cd")


def test_windows_score_every_token_once_and_the_last_one_reaches_back(tiny_model: russet.Model) -> None:
    tokens = tiny_model.tokenizer.encode(PASSAGE)
    found = list(windows(tiny_model.tokenizer, PASSAGE, 40))
    assert [token for span in found for token in span.continuation] == tokens
    assert found[0] == Span([258, *tokens[:40]], 1)
    assert found[1] == Span(tokens[39:80], 1)
    assert found[2] == Span(tokens[-41:], 41 - (len(tokens) - 80))
    assert [halved(span).first for span in found] == [20, 20, max(20, found[2].first)]
    assert list(windows(tiny_model.tokenizer, "", 40)) == []


def test_a_text_begins_behind_the_bos_token_where_there_is_one(
    tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model.tokenizer, "bos_id", 256)
    (window,) = windows(tiny_model.tokenizer, "ab", 40)
    assert window.tokens == [256, *tiny_model.tokenizer.encode("ab")]


def lambada(folder: Path, rows: int, words: int = 9) -> Path:
    lines = [{"query": PASSAGE[: 20 + words * (i % 9)], "answer": [f"word{i}"]} for i in range(rows)]
    (folder / "lambada.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_limit_takes_the_first_rows_and_the_same_call_gives_the_same(
    tiny_model: russet.Model, tmp_path: Path
) -> None:
    data = lambada(tmp_path, 70)
    heard: list[str] = []
    whole = evaluate(tiny_model, ["lambada"], data, listen=heard.append)["lambada"]
    again = evaluate(tiny_model, ["lambada"], data, pass_rows=64)["lambada"]
    some = evaluate(tiny_model, ["lambada"], data, limit=5)["lambada"]
    assert evaluate(tiny_model, ["lambada"], data)["lambada"] == whole
    assert list(whole.rows) == [f"lambada/{i}" for i in range(70)] and heard[-1] == "lambada, 70 rows"
    for row in whole.rows:
        assert again.rows[row].values == pytest.approx(whole.rows[row].values, rel=1e-5)
    assert list(some.rows) == list(islice(whole.rows, 5))


def test_long_texts_are_not_put_together_so_that_an_interruption_loses_little(
    tiny_model: russet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text("".join(f" = T{i} = \n{'a b ' * 20 * i}\n" for i in range(5)))
    blocks: list[list[str]] = []
    real = quality.outcomes

    def outcomes(model, contender, block, rows):
        blocks.append([item.id for item in block])
        return real(model, contender, block, rows)

    monkeypatch.setattr(quality, "outcomes", outcomes)
    monkeypatch.setattr(quality, "BLOCK_CHARACTERS", 200)
    evaluate(tiny_model, ["wikitext", "lambada"], lambada(tmp_path, 66, words=0))
    assert blocks[:3] == [["wikitext/0", "wikitext/1", "wikitext/2"], ["wikitext/3"], ["wikitext/4"]]
    monkeypatch.setattr(quality, "BLOCK_CHARACTERS", 10**6)
    blocks.clear()
    evaluate(tiny_model, ["lambada"], tmp_path)
    assert [len(block) for block in blocks] == [64, 2]


def test_rows_that_do_not_fit_are_left_out(tiny_model: russet.Model, tmp_path: Path) -> None:
    rows = [{"query": "a " * size, "answer": ["b"]} for size in (100, 300, 50)]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for prefill in (None, Contender("lazyllm", LazyLLM(schedule=CUTS))):
        scores = evaluate(tiny_model, ["lambada"], tmp_path, prefill=prefill)["lambada"]
        assert list(scores.rows) == ["lambada/0", "lambada/2"] and scores.skipped == 1


def test_a_lossy_prefill_has_no_rolling_perplexity_but_that_of_second_halves(
    tiny_model: russet.Model, tmp_path: Path
) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text(f" = A = \n{PASSAGE * 3}\n = B = \n{PASSAGE}{PASSAGE[:30]}\n")
    found = {
        name: evaluate(tiny_model, ["wikitext"], tmp_path, prefill=Contender(name, prefill))["wikitext"]
        for name, prefill in (
            ("exact", Exact()),
            ("all", replace_exact()),
            ("lazyllm", LazyLLM(schedule=CUTS)),
        )
    }
    assert list(found["exact"].estimates()) == [metric.name for metric in found["exact"].metrics]
    assert list(found["lazyllm"].estimates()) == ["continuation_perplexity"]
    (same,) = compare(found["all"], found["exact"])
    assert same.estimate.value == pytest.approx(1, abs=1e-5) and same.rows == 2
    (price,) = compare(found["lazyllm"], found["exact"])
    assert price.estimate.value != pytest.approx(1, abs=1e-3)


def replace_exact() -> Exact:
    """Exact prefill that says it is not, so that it is scored as a strategy is."""
    strategy = Exact(chunk=50)
    strategy.exact = False
    return strategy


def test_a_strategy_that_did_not_run_says_so(tiny_model: russet.Model, tmp_path: Path) -> None:
    data = lambada(tmp_path, 9)
    scores = evaluate(tiny_model, ["lambada"], data, prefill=Contender("lazyllm", LazyLLM(schedule=CUTS)))["lambada"]
    short = [row for row, outcome in scores.rows.items() if outcome.note]
    assert len(short) == len(scores.fell_back) == 5 and "LazyLLM starts at 64" in scores.fell_back[0]


def test_models_are_compared_on_the_rows_that_both_have(tiny_model: russet.Model, tmp_path: Path) -> None:
    scores = evaluate(tiny_model, ["lambada"], lambada(tmp_path, 12))["lambada"]
    rows = {
        row: replace(outcome, values={"acc": 1.0, "log_probability": outcome.values["log_probability"] + 0.5})
        for row, outcome in islice(scores.rows.items(), 4, None)
    }
    better = Scores(scores.task, scores.definition, scores.metrics, rows)
    acc, perplexity = compare(better, scores)
    assert (acc.rows, acc.estimate.value) == (8, 1.0)
    assert perplexity.estimate.value == pytest.approx(np.exp(-0.5))
    assert perplexity.estimate.low == pytest.approx(perplexity.estimate.high)
    back, _ = compare(scores, better)
    assert (back.rows, back.estimate.value) == (8, -1.0)
    assert compare(replace(better, rows={}), scores) == []


def test_perplexities_over_other_tokens_are_not_compared() -> None:
    metric = Metric("perplexity", "perplexity", "log", "tokens")
    ours, theirs = [{"log": -2.0, "tokens": 3.0}], [{"log": -2.0, "tokens": 4.0}]
    assert metric.compare(ours, theirs) is None
    found = metric.compare(ours, ours)
    assert found is not None and found.value == 1.0


def test_a_primed_strategy_runs_once_more_before_every_reply(tiny_model: russet.Model, tmp_path: Path) -> None:
    query = "Title: T\nBackground: B.\nQuestion: Q?\nAnswer:"
    (tmp_path / "squad.jsonl").write_text(json.dumps({"query": query, "answers": ["a"]}) + "\n")
    ran: list[int] = []

    class Counting(Exact):
        def __call__(self, decoder, prompt, cache):
            ran.append(len(prompt.tokens))
            return super().__call__(decoder, prompt, cache)

    for primed in (False, True):
        evaluate(tiny_model, ["squad"], tmp_path, prefill=Contender("x", Counting(), primed))
    assert len(ran) == 3 and len(set(ran)) == 1
