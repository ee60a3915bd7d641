"""How many layers are handed to a GPU before it is waited for."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.models import decoder as decoder_module
from russet.models import pacing
from russet.models.config import DecoderConfig, LayerSpec, Rope
from russet.models.pacing import Pace, pace


def config(hidden: int, ffn: int, layers: int) -> DecoderConfig:
    spec = LayerSpec(heads=2, kv_heads=1, head_dim=hidden // 2, ffn_dim=ffn, rope=Rope(hidden // 2, 1e4))
    return DecoderConfig("llama", hidden, 64, (spec,) * layers, 128, 1e-5)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is started and waited for, in order."""
    events: list[str] = []
    monkeypatch.setattr(pacing.mx, "async_eval", lambda h: events.append(f"start {h}"))
    monkeypatch.setattr(pacing.mx, "eval", lambda h: events.append(f"wait {h}"))
    return events


def test_one_group_runs_while_the_next_is_handed_over(evaluated: list[str]) -> None:
    counted = Pace(2)
    for layer in range(7):
        counted.layer(layer)  # type: ignore[arg-type]
    assert evaluated == ["start 1", "start 3", "wait 1", "start 5", "wait 3"]


def test_groups_are_as_large_as_their_expanded_weights_allow(evaluated: list[str], monkeypatch) -> None:
    monkeypatch.setattr(pacing, "on_gpu", lambda: True)
    layer = 64 * (2 * 3 * 32 + 3 * 256) * 2
    monkeypatch.setattr(pacing, "AHEAD_BYTES", 3 * layer + 5)
    assert pace(config(64, 256, 8), True, 512, mx.float16)._at_once == 3
    monkeypatch.setattr(pacing, "AHEAD_BYTES", layer // 2)
    assert pace(config(64, 256, 8), True, 512, mx.float16)._at_once == 1
    for packed, rows in ((False, 512), (True, 100)):
        assert pace(config(64, 256, 8), packed, rows, mx.float16)._at_once is None


def test_a_pass_tells_its_pace_of_every_layer_and_gives_the_same_rows(tiny_folder, monkeypatch) -> None:
    from russet.models.loading import load_decoder

    decoder = load_decoder(tiny_folder)
    tokens, rows, asked = mx.array([[3, 7, 1, 12, 9]]), [], []
    for at_once in (None, 1):
        counted = Pace(at_once)
        monkeypatch.setattr(decoder_module, "pace", lambda *given, counted=counted: asked.append(given) or counted)
        rows.append(decoder.extend(tokens, decoder.new_cache()))
        assert counted._count == len(decoder.blocks)
    assert mx.array_equal(*rows)
    assert asked == [(decoder.config, decoder.packed, 5, decoder.dtype)] * 2
