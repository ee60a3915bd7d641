"""Where the fused step does not serve: the layers decode then, and the log says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from russet.engine.errors import UnsupportedModelError
from russet.kernels import base
from russet.kernels.attend_decode import ATTEND_DECODE, ATTEND_SHARED
from russet.models import fused as fused_step
from russet.models.decoder import Decoder
from russet.models.fused_layer import check_shapes
from russet.models.linear import Affine, Quantized
from russet.models.loading import load_decoder
from russet.models.norm import ReLUNorm

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch kernels to their references, as RUSSET_KERNELS=reference does."""
    for module in ("russet.kernels.base", "russet.models.fused", "russet.models.loading"):
        monkeypatch.setattr(f"{module}.mode", lambda: "reference")


@pytest.mark.parametrize("kernel", [ATTEND_DECODE, ATTEND_SHARED], ids=lambda kernel: kernel.name)
def test_attention_that_is_off_leaves_the_layers_to_decode(monkeypatch, kernel: base.Kernel) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    assert decoder._fused_step() is not None
    monkeypatch.setattr(base, "_switched_off", [*base._switched_off, kernel.name])
    monkeypatch.setattr(kernel, "_disabled", "it does not run")
    assert decoder._fused_step() is None


@pytest.mark.parametrize(("chosen", "target"), [("off", "metal"), ("off", None), ("on", None)])
def test_no_step_is_fused_without_kernels(monkeypatch: pytest.MonkeyPatch, chosen: str, target: str | None) -> None:
    monkeypatch.setattr(fused_step, "mode", lambda: chosen)
    monkeypatch.setattr(fused_step, "backend", lambda: target)
    monkeypatch.setattr(fused_step, "FusedStep", lambda decoder: pytest.fail("a step was made"))
    assert fused_step.make_fused(load_decoder(GOLDEN / "llama")) is None


def test_layers_in_several_formats_are_said_not_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    decoder.blocks[0].gate_up.maps.append(decoder.blocks[0].down)
    assert decoder._fused_step() is None
    assert "projections of one input in several formats" in caplog.text


def with_spec(**changes: Any) -> Callable[[Decoder], None]:
    def change(decoder: Decoder) -> None:
        decoder.blocks[1].spec = replace(decoder.blocks[1].spec, **changes)

    return change


def three_bits(decoder: Decoder) -> None:
    rows = mx.random.normal(decoder.blocks[1].out.weight.shape)  # type: ignore[union-attr]
    decoder.blocks[1].out = Quantized(Affine(*mx.quantize(rows, 32, 3), 32, 3))


def an_adapter(decoder: Decoder) -> None:
    rows = mx.random.normal(decoder.blocks[1].out.weight.shape)  # type: ignore[union-attr]
    adapter = mx.zeros((2, rows.shape[1])), mx.zeros((rows.shape[0], 2))
    decoder.blocks[1].out = Quantized(Affine(*mx.quantize(rows, 32, 4), 32, 4, adapter))


def another_norm(decoder: Decoder) -> None:
    decoder.blocks[1].ffn_norm = ReLUNorm(decoder.blocks[1].ffn_norm)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_spec(attention="sigmoid"), "sigmoid attention"),
        (with_spec(activation="relu", relu_shift=0.5), "a shifted ReLU"),
        (three_bits, "3-bit weights in groups of 32"),
        (an_adapter, "weights with adapters"),
        (another_norm, "norms of this kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_step_does_not_compute_is_left_to_the_layers(caplog, change, told: str) -> None:
    decoder = load_decoder(GOLDEN / "llama")
    change(decoder)
    assert decoder._fused_step() is None
    assert f"the fused kernels do not take {told}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head_dim": 48}, "heads of 48 features"),
        ({"head_dim": 288}, "heads of 288 features"),
        ({"heads": 164, "kv_heads": 1, "head_dim": 32}, "164 heads of 32 features"),
        ({"ffn_dim": 100}, "rows of 100 weights"),
    ],
)
def test_shapes_that_the_kernels_do_not_take_are_named(changes: dict[str, int], told: str) -> None:
    config = load_decoder(GOLDEN / "llama").config
    sound = replace(config.layers[0], head_dim=32, heads=4, kv_heads=2, ffn_dim=96)
    check_shapes(replace(config, hidden_dim=64, layers=(sound, sound)))
    with pytest.raises(UnsupportedModelError, match=told):
        check_shapes(replace(config, hidden_dim=64, layers=(sound, replace(sound, **changes))))
    with pytest.raises(UnsupportedModelError, match="rows of 72 weights"):
        check_shapes(replace(config, hidden_dim=72, layers=(sound,)))
