from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import pytest

from russet.engine import device
from russet.engine.device import prefill_chunk
from russet.engine.prefill import exact
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact


@pytest.mark.parametrize(
    ("gpu", "cuda", "memory", "packed", "rows"),
    [
        (False, False, 80e9, True, 512),
        (True, False, 80e9, True, 4096),
        (True, False, 80e9, False, 2048),
        (True, False, 16e9, True, 2048),
        (True, True, 80e9, False, 16384),
        (True, True, 60e9, False, 2048),
    ],
)
def test_a_chunk_is_larger_where_memory_is_ample(monkeypatch, gpu, cuda, memory, packed, rows):
    monkeypatch.setattr(device, "on_gpu", lambda: gpu)
    monkeypatch.setattr(device.mx.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(device.mx, "get_active_memory", lambda: int(14e9))
    monkeypatch.setattr(device, "memory_bytes", lambda: int(memory))
    assert prefill_chunk(packed) == rows


class Recorder:
    """A decoder that writes down the chunks it is given."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed
        self.chunks: list[int] = []

    def extend(self, tokens: mx.array, cache: object, logits: int = 1) -> mx.array | None:
        self.chunks.append(tokens.shape[1])
        return mx.zeros((1, 1, 8)) if logits else None


@pytest.mark.parametrize(("packed", "chunks"), [(True, [8, 2]), (False, [4, 4, 2])])
def test_exact_prefill_asks_whether_weights_are_packed(monkeypatch, packed, chunks):
    monkeypatch.setattr(exact, "prefill_chunk", lambda packed: 8 if packed else 4)
    decoder = Recorder(packed)
    Exact()(decoder, PromptTokens(list(range(10))), SimpleNamespace(arrays=list))
    assert decoder.chunks == chunks


def test_a_chunk_that_was_asked_for_is_kept():
    decoder = Recorder(packed=True)
    Exact(3)(decoder, PromptTokens(list(range(7))), SimpleNamespace(arrays=list))
    assert decoder.chunks == [3, 3, 1]
