"""Sessions with a lossy strategy: exact turns and saved conversations never see what it computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.prefill.base import Prefill
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.importance import LastRow
from russet.engine.prefill.lazyllm import LazyLLM
from russet.engine.prefill.pruning import Staged
from russet.engine.prefill.specprefill import SpecPrefill

OPTIONS: dict[str, Any] = {"max_tokens": 5, "logit_bias": {258: -1e9}}
LONG = "All happy families are alike. " * 5
CUT = Staged({0.34: 0.3})

lossy = pytest.mark.parametrize(
    "prefill",
    [LazyLLM(schedule=CUT), LazyLLM(schedule=CUT, revive=2), SpecPrefill(0.3, min_prompt=64)],
    ids=["lazyllm", "revive", "spec"],
)


def rows(session: russet.Session) -> dict[int, list[np.ndarray]]:
    return {
        layer: [np.array(buffer.astype(mx.float32)) for buffer in slot.rows.stored()]
        for layer, slot in session.cache.slots.items()
    }


def assert_exact(session: russet.Session, model: russet.Model) -> None:
    """Every row that the session keeps is what one exact pass over the same tokens leaves, up to rounding."""
    tokens = session.cached
    assert all(slot.rows.length == len(tokens) for slot in session.cache.slots.values())
    assert all(np.array_equal(slot.positions, np.arange(len(tokens))) for slot in session.cache.slots.values())
    if not tokens:
        return
    cache = model.decoder.new_cache()
    model.decoder.extend(mx.array([tokens]), cache)
    for layer, slot in cache.slots.items():
        for ours, buffer in zip(rows(session)[layer], slot.rows.stored(), strict=True):
            np.testing.assert_allclose(ours, np.array(buffer), atol=1e-4)


@lossy
def test_a_lossy_turn_leaves_no_row_behind(tiny_model: russet.Model, prefill: Prefill) -> None:
    session = tiny_model.session(prefill=prefill, **OPTIONS)
    first = session.respond(LONG)
    assert not first.exact and session.cached_tokens == 0
    assert_exact(session, tiny_model)
    second = session.respond("And then?")
    assert not second.exact and second.timings.cached_tokens == 0
    assert len(session.messages) == 4


@lossy
def test_an_exact_turn_after_a_lossy_one_is_that_of_a_fresh_session(tiny_model: russet.Model, prefill: Prefill) -> None:
    session = tiny_model.session(prefill=prefill, **OPTIONS)
    session.respond(LONG)
    session.prefill = Exact()
    fresh = tiny_model.session(**OPTIONS)
    fresh.messages = list(session.messages)
    exact, expected = session.respond("And then?"), fresh.respond("And then?")
    assert exact.exact and exact.timings.cached_tokens == 0
    assert exact.tokens == expected.tokens
    assert_exact(session, tiny_model)


@lossy
def test_a_lossy_turn_starts_from_exact_rows_and_gives_them_back(tiny_model: russet.Model, prefill: Prefill) -> None:
    session = tiny_model.session(**OPTIONS)
    session.respond("Once upon a time there was a short question.")
    kept = session.cached_tokens
    before = rows(session)
    session.prefill = prefill
    reply = session.respond(LONG)
    # The reply's last token may be spelled otherwise by the template.
    assert 0 < reply.timings.cached_tokens <= kept and not reply.exact
    assert session.cached_tokens == reply.timings.cached_tokens
    for layer, buffers in rows(session).items():
        for now, then in zip(buffers, before[layer], strict=True):
            assert np.array_equal(now, then[:, :, : session.cached_tokens])
    assert_exact(session, tiny_model)
    session.prefill = Exact()
    session.respond("And then?")
    assert_exact(session, tiny_model)


def test_a_strategy_that_falls_back_to_exact_keeps_its_rows(tiny_model: russet.Model) -> None:
    session = tiny_model.session(prefill=LazyLLM(schedule=CUT), **OPTIONS)
    reply = session.respond("Hi")
    assert reply.exact and reply.note and session.cached_tokens >= reply.prompt_tokens
    assert_exact(session, tiny_model)


def test_an_interrupted_lossy_turn_leaves_no_row_behind(tiny_model: russet.Model) -> None:
    session = tiny_model.session(prefill=LazyLLM(schedule=CUT), **OPTIONS)
    pieces = session.stream(LONG)
    next(pieces)
    pieces.close()
    assert session.cached_tokens == 0 and len(session.messages) == 2
    assert_exact(session, tiny_model)


def test_what_is_saved_is_exact(tiny_model: russet.Model, tmp_path: Path) -> None:
    session = tiny_model.session(**OPTIONS)
    session.respond("Hi")
    session.prefill = LazyLLM(schedule=CUT)
    pieces = session.stream(LONG)
    next(pieces)
    session.save(tmp_path / "midway")
    pieces.close()
    session.save(tmp_path / "after")
    for name in ("midway", "after"):
        loaded = tiny_model.load_session(tmp_path / name, prefill=LazyLLM(schedule=CUT), **OPTIONS)
        assert loaded.cached_tokens > 0 and isinstance(loaded.prefill, LazyLLM)
        assert_exact(loaded, tiny_model)


def test_a_lossy_session_leaves_nothing_in_the_prefix_cache(tiny_folder: Path, tmp_path: Path) -> None:
    model = russet.load(tiny_folder, prefix_cache=tmp_path / "prefixes")
    model.session(prefill=LazyLLM(schedule=CUT), **OPTIONS).respond(LONG * 2)
    assert not (tmp_path / "prefixes").exists()


@pytest.mark.parametrize("prefill", ["lazyllm", LazyLLM, 0.3])
def test_what_is_no_strategy_is_told(tiny_model: russet.Model, prefill: Any) -> None:
    for ask in (lambda: tiny_model.generate(LONG, prefill=prefill), lambda: tiny_model.session(prefill=prefill)):
        with pytest.raises(russet.RussetError, match=r"it must be an object such as russet\.LazyLLM\(\)"):
            ask()


def test_a_schedule_and_a_scorer_of_ones_own_serve(tiny_model: russet.Model) -> None:
    """As docs/prefill.md names them."""
    strategy = russet.LazyLLM(schedule=Staged({0.34: 0.5}), scorer=LastRow())
    reply = tiny_model.generate(LONG, prefill=strategy, max_tokens=2)
    assert reply.strategy == "lazyllm"
    assert reply.layer_tokens[0] == reply.prompt_tokens and reply.layer_tokens[1] == round(reply.prompt_tokens / 2)
