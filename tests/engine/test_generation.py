"""Generation and sessions on a tiny random model: the loop, stopping, reuse, saving, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import russet
from russet.engine.decode import decode
from russet.engine.errors import (
    EmptyPromptError,
    InvalidOptionError,
    PromptTooLongError,
    RussetError,
    SessionFileError,
    StorageError,
    WeightsError,
)
from russet.engine.prefill.exact import Exact


def greedy_by_full_recompute(model: russet.Model, tokens: list[int], n: int) -> list[int]:
    """The slow way: one whole pass a token, no cache kept."""
    tokens = list(tokens)
    for _ in range(n):
        logits = model.decoder.extend(mx.array([tokens]), model.decoder.new_cache())
        assert logits is not None
        tokens.append(int(np.argmax(np.array(logits)[0, -1])))
    return tokens[-n:]


@pytest.mark.parametrize("chunk", [1, 7, 40, 512])
def test_greedy_tokens_equal_full_recomputation_whatever_the_chunk(tiny_model: russet.Model, chunk: int) -> None:
    prompt = tiny_model.encode("A prompt of some length, cut into chunks.", raw=True)
    expected = greedy_by_full_recompute(tiny_model, prompt, 12)
    reply = tiny_model.generate(prompt, max_tokens=12, prefill=Exact(chunk), logit_bias={258: -1e9})
    assert reply.tokens == expected
    assert (reply.exact, reply.strategy, reply.finish_reason) == (True, "exact", "length")
    assert reply.prompt_tokens == len(prompt)


def test_decode_yields_the_first_token_before_it_steps() -> None:
    steps: list[int] = []

    def step(token: mx.array) -> mx.array:
        steps.append(int(np.array(token)[0, 0]))
        return mx.eye(8)[(steps[-1] + 1) % 8][None]

    tokens = decode(step, mx.eye(8)[3][None], lambda logits: mx.argmax(logits, axis=-1), limit=4)
    assert next(tokens) == 3
    assert steps == []
    assert list(tokens) == [4, 5, 6]
    assert steps == [3, 4, 5]  # one step fewer than tokens: nothing is computed past the limit


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_told_before_a_token_is(value: float) -> None:
    logits = mx.where(mx.arange(8) == 5, value, mx.zeros((1, 8)))
    with pytest.raises(WeightsError, match=r"numbers that are not finite: compute in float32"):
        next(decode(lambda token: logits, logits, lambda logits: mx.argmax(logits, axis=-1), limit=4))
    masked = mx.where(mx.arange(8) == 5, -math.inf, mx.zeros((1, 8)))  # tokens that a model rules out
    assert next(decode(lambda token: logits, masked, lambda logits: mx.argmax(logits, axis=-1), limit=4)) == 0


def test_the_end_token_ends_and_is_not_in_the_reply(tiny_model: russet.Model) -> None:
    reply = tiny_model.generate("x", max_tokens=20, logit_bias={258: 1e9})
    assert (reply.text, reply.tokens, reply.finish_reason) == ("", [], "stop")


def test_stop_strings_end_the_text_and_never_show(tiny_model: russet.Model) -> None:
    free = tiny_model.generate("Hello", max_tokens=30, logit_bias={258: -1e9}, temperature=1.0, seed=4)
    stop = free.text[5:8]
    pieces = list(
        tiny_model.stream("Hello", max_tokens=30, logit_bias={258: -1e9}, temperature=1.0, seed=4, stop=(stop,))
    )
    reply = pieces[-1].reply
    assert reply is not None
    assert reply.text == "".join(piece.text for piece in pieces) == free.text[: free.text.index(stop)]
    assert reply.finish_reason == "stop"


def test_pieces_join_to_the_text_and_the_last_one_carries_the_reply(tiny_model: russet.Model) -> None:
    pieces = list(tiny_model.stream("Hello", max_tokens=40, temperature=1.5, seed=1, logit_bias={258: -1e9}))
    reply = pieces[-1].reply
    assert reply is not None and all(piece.reply is None for piece in pieces[:-1])
    assert "".join(piece.text for piece in pieces) == reply.text == tiny_model.tokenizer.decode(reply.tokens)
    assert len(reply.tokens) == len(reply.timings.token_times_s) == 40
    assert 0 < reply.timings.prefill_s <= reply.timings.ttft_s
    assert reply.timings.token_times_s == sorted(reply.timings.token_times_s)


def test_context_ends_the_reply_and_a_longer_prompt_is_refused_before_any_work(
    tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = tiny_model.generate([65] * 505, logit_bias={258: -1e9})
    assert (len(reply.tokens), reply.finish_reason) == (7, "length")
    monkeypatch.setattr(tiny_model.decoder, "new_cache", lambda *_: pytest.fail("work was done"))
    with pytest.raises(PromptTooLongError, match="512 tokens long and the model's context holds 512"):
        tiny_model.stream([65] * 512)


def test_an_int8_cache_is_named_lossy_and_stays_close(tiny_folder: Path, tiny_model: russet.Model) -> None:
    small = russet.load(tiny_folder, kv_bits=8)
    tokens = mx.array([tiny_model.encode("The same prompt for both of them.", raw=True)])
    exact = tiny_model.decoder.extend(tokens, tiny_model.decoder.new_cache())
    rounded = small.decoder.extend(tokens, small.decoder.new_cache(8))
    assert exact is not None and rounded is not None
    error = np.abs(np.array(exact) - np.array(rounded)).max()
    assert 0 < error < 0.05 * np.abs(np.array(exact)).max()
    assert small.generate("x", max_tokens=2).exact is False


def test_a_session_prefills_only_what_is_new_and_says_the_same(tiny_model: russet.Model) -> None:
    session = tiny_model.session(system="Be brief.", max_tokens=10, temperature=1.0, seed=3)
    first = session.respond("One?")
    assert first.timings.cached_tokens == 0
    second = session.respond("Two?")
    assert second.timings.cached_tokens >= first.prompt_tokens
    fresh = tiny_model.generate(session.messages[:-1], max_tokens=10, temperature=1.0, seed=3)
    assert (fresh.text, fresh.prompt_tokens) == (second.text, second.prompt_tokens)
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("ending", ["length", "end token", "closed early"])
def test_rows_and_tokens_agree_however_a_turn_ends(
    tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 2, "logit_bias": {258: -1e9}}
    prompt = tiny_model.encode([{"role": "user", "content": "One?"}])
    free = tiny_model.generate(prompt, **options).tokens
    if ending == "end token":
        # A token in the middle ends the turn, so that the loop is a step ahead when it comes.
        last = next(token for i, token in enumerate(free) if i > 3 and token not in free[:i])
        monkeypatch.setattr(tiny_model.tokenizer, "eos_ids", frozenset({last}))
    session = tiny_model.session(**options)
    stream = session.stream("One?")
    pieces = [next(stream) for _ in range(4)] if ending == "closed early" else list(stream)
    stream.close()
    assert pieces and session.last_reply is not None
    said = session.last_reply.tokens
    assert said == free[: len(said)] and (len(said) == 12) == (ending == "length")
    assert session.cached == [*prompt, *said][: session.cached_tokens]
    assert session.cache.next_position == session.cached_tokens >= len(prompt) + len(said) - 1
    assert all(len(slot.positions) == session.cached_tokens for slot in session.cache.slots.values())


def test_regenerate_replaces_the_last_reply(tiny_model: russet.Model) -> None:
    session = tiny_model.session(max_tokens=8, temperature=1.0)
    with pytest.raises(InvalidOptionError, match="no message to answer again"):
        session.regenerate()
    session.respond("One?", seed=1)
    *_, last = session.regenerate(seed=2)
    assert last.reply is not None
    assert session.messages[1:] == [{"role": "assistant", "content": last.reply.text}]
    session.clear()
    assert session.messages == [] and session.respond("Two?").prompt_tokens > 0


def test_stopping_early_keeps_what_was_said_and_the_cache_stays_right(tiny_model: russet.Model) -> None:
    session = tiny_model.session(max_tokens=50, logit_bias={258: -1e9})
    stream = session.stream("Tell me more.")
    said = "".join(next(stream).text for _ in range(5))
    stream.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    assert session.last_reply is not None
    assert (session.last_reply.text, session.last_reply.finish_reason) == (said, "interrupted")
    reply = session.respond("Go on.", max_tokens=8)
    fresh = tiny_model.generate(session.messages[:-1], max_tokens=8, logit_bias={258: -1e9})
    assert reply.tokens == fresh.tokens


def test_a_turn_that_is_stopped_before_its_first_word_leaves_no_trace(
    tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_model.session(max_tokens=4)
    session.respond("One?")
    before = list(session.messages)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("russet.engine.session.Exact.__call__", interrupted)
        for stream in (session.stream("Two?"), session.regenerate()):
            with pytest.raises(KeyboardInterrupt):
                next(stream)
            assert session.messages == before and session.last_reply is None
    assert session.respond("Two?").tokens == tiny_model.generate(session.messages[:-1], max_tokens=4).tokens


def test_a_refused_message_changes_nothing(tiny_model: russet.Model) -> None:
    session = tiny_model.session(max_tokens=4)
    session.respond("One?")
    before = list(session.messages), session.cached_tokens
    with pytest.raises(PromptTooLongError):
        session.respond("long " * 200)
    with pytest.raises(EmptyPromptError):
        session.respond("  ")
    assert (session.messages, session.cached_tokens) == before


@settings(deadline=None, max_examples=12)
@given(st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=3), st.sampled_from([8, 16]))
def test_a_saved_session_goes_on_exactly(tiny_folder: Path, tmp_path_factory, turns: list[str], kv_bits: int) -> None:
    model = russet.load(tiny_folder, kv_bits=kv_bits)
    path = tmp_path_factory.mktemp("sessions") / "talk.russet"
    session = model.session(max_tokens=6, temperature=1.0, seed=5)
    for turn in turns:
        session.respond(turn)
    session.save(path)
    again = model.load_session(path, max_tokens=6, temperature=1.0, seed=5)
    assert again.messages == session.messages and again.cached == session.cached
    ours, theirs = session.respond("And now?"), again.respond("And now?")
    assert ours.tokens == theirs.tokens
    assert ours.timings.cached_tokens == theirs.timings.cached_tokens > 0


def test_saved_sessions_that_cannot_be_used_are_refused(
    tiny_model: russet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_model.session(max_tokens=4)
    session.respond("One?")
    path = tmp_path / "talk.russet"
    session.save(path)
    whole = path.read_bytes()
    with pytest.raises(StorageError, match="is a folder; give the name of a file"):
        session.save(tmp_path)
    with pytest.raises(StorageError, match=r"There is no folder .*nowhere for talk; make it"):
        session.save(tmp_path / "nowhere" / "talk")
    with pytest.raises(SessionFileError, match="no saved conversation"):
        tiny_model.load_session(tmp_path / "other.russet")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SessionFileError, match="damaged"):
        tiny_model.load_session(path)
    path.write_bytes(whole)
    monkeypatch.setattr("russet.engine.session_file.fingerprint", lambda _: "another")
    with pytest.raises(SessionFileError, match="another model"):
        tiny_model.load_session(path)


def test_saving_to_a_full_disk_keeps_the_old_file(
    tiny_model: russet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_model.session(max_tokens=4)
    session.respond("One?")
    path = tmp_path / "talk.russet"
    path.write_bytes(b"the old one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("russet.engine.array_file.os.fsync", full)
    with pytest.raises(StorageError, match="full"):
        session.save(path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("talk.russet", b"the old one")]
    monkeypatch.undo()
    session.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RussetError):
        session.save(tmp_path / "no" / "such" / "folder.russet")


def test_a_model_whose_ffns_are_cut_gives_no_exact_reply(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    for thresholds, exact in (
        ([0.0] * config["num_hidden_layers"], True),
        ([0.1] * config["num_hidden_layers"], False),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "ffn_thresholds": thresholds}))
        assert russet.load(folder).generate([1, 2, 3], max_tokens=2).exact is exact
