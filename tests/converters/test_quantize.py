"""Which tensors are stored how, and that what is encoded is MLX's own quantisation."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.base import SourceTensor
from russet.converters.convert import convert
from russet.converters.quantize import Recipe, Rule, Target, blocks, choose_dtype, target_of
from russet.engine.errors import InvalidOptionError, WeightsError

MATRIX = mx.random.normal((8, 128), key=mx.random.key(0))


def source(array: mx.array = MATRIX, name: str = "a.b.weight", dtype: str | None = None, **rest) -> SourceTensor:
    kind = dtype or str(array.dtype).removeprefix("mlx.core.")
    return SourceTensor(name, array.shape, kind, array.nbytes, lambda: array, **rest)


def test_rules() -> None:
    assert Rule.parse("*.mlp.*=4:64") == Rule("*.mlp.*", 4, 64)
    assert Rule.parse("a=b=8") == Rule("a=b", 8, None)
    assert Rule("a.?", 4).matches("a.b.weight") and Rule("*.weight", 4).matches("a.b.weight")
    assert not Rule("A.b", 4).matches("a.b.weight")
    for text in ("", "a", "a=", "=4", "a=four", "a=4:", "a=4:x:y", "a=4.0"):
        if text == "a=4:":
            continue
        with pytest.raises(InvalidOptionError, match="is not PATTERN=BITS"):
            Rule.parse(text)
    with pytest.raises(InvalidOptionError, match="3 bits are not possible; choose 16, 8, 4, 2"):
        Rule.parse("a=3")
    with pytest.raises(InvalidOptionError, match="group size 48 is not possible"):
        Rule.parse("a=4:48")


def test_recipes_are_checked() -> None:
    for options in ({"bits": 5}, {"group_size": 16}, {"dtype": "int8"}):
        with pytest.raises(InvalidOptionError):
            Recipe(**options)


def test_targets() -> None:
    four = Recipe(bits=4, rules=(Rule("*.down.*", 8, 32), Rule("*.d*", 2), Rule("*embed*", 16)))
    expected = {
        "layers.0.q_proj.weight": Target("float16", 4, 64),
        "layers.0.down.weight": Target("float16", 8, 32),
        "layers.0.dense.weight": Target("float16", 2, 64),
        "model.embed.weight": Target("float16"),
        "layers.0.q_proj.bias": Target("float16"),
    }
    for name, target in expected.items():
        assert target_of(source(name=name), four, "float16") == target, name
    vector = source(mx.ones((128,)), "norm.weight")
    assert target_of(vector, four, "float16") == Target("float16")
    assert target_of(source(mx.ones((4, 4, 64)), "conv.weight"), four, "float16") == Target("float16")
    assert target_of(source(mx.ones((4,), dtype=mx.int32), "ids"), four, "float16") == Target("int32")
    assert target_of(source(mx.array(0.5), "k.scale", pinned=True), four, "float16") == Target("float32")
    narrow = target_of(source(mx.ones((4, 96))), four, "float16")
    assert narrow.bits is None and narrow.note == "kept dense: rows of 96 do not divide into groups of 64"
    assert target_of(source(mx.ones((4, 96))), Recipe(bits=4, group_size=32), "float16").group_size == 32


def test_packed_sources_are_kept_where_nothing_else_is_asked() -> None:
    packed = source(dtype="Q4_0", packed_bits=4, read_packed=lambda: None)
    keep = Target("float16", 4, 32, keep=True)
    cases = [
        (Recipe(), "float16", keep),
        (Recipe(bits=4), "float16", keep),
        (Recipe(bits=4, group_size=32), "float16", keep),
        (Recipe(bits=4, group_size=64), "float16", Target("float16", 4, 64)),
        (Recipe(bits=2), "float16", Target("float16", 2, 64)),
        (Recipe(bits=16), "float16", Target("float16")),
        (Recipe(bits=2, rules=(Rule("*", 4),)), "float16", keep),
        (Recipe(), "float32", Target("float32", 4, 32, keep=True)),
    ]
    for recipe, dtype, expected in cases:
        assert target_of(packed, recipe, dtype) == expected, recipe


def test_dtype_of_the_result() -> None:
    half, full = source(MATRIX.astype(mx.bfloat16)), source()
    packed = source(dtype="Q4_K")
    assert choose_dtype([half, full, half], Recipe(), {}) == "bfloat16"
    assert choose_dtype([full], Recipe(), {}) == "float32"
    assert choose_dtype([full], Recipe(bits=4), {}) == "float16"
    assert choose_dtype([full], Recipe(bits=16), {"torch_dtype": "bfloat16"}) == "bfloat16"
    assert choose_dtype([full], Recipe(bits=16), {"dtype": "bfloat16"}) == "bfloat16"
    assert choose_dtype([packed, packed, full], Recipe(), {}) == "float16"
    assert choose_dtype([half], Recipe(dtype="float32"), {}) == "float32"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_encoding_is_mlx_quantize(monkeypatch: pytest.MonkeyPatch, bits: int, dtype: str) -> None:
    """Some rows at a time, with the same result as all at once."""
    monkeypatch.setattr("russet.converters.quantize.BLOCK_WEIGHTS", 300)
    parts = list(blocks(source(), Target(dtype, bits, 32)))
    assert len(parts) == 4
    expected = mx.quantize(MATRIX.astype(getattr(mx, dtype)), 32, bits)
    for i, whole in enumerate(expected):
        assert mx.array_equal(mx.concatenate([part[i] for part in parts]), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("target", [Target("float16"), Target("float32"), Target("bfloat16", 4, 32)])
def test_values_that_are_not_finite_are_refused(value: float, target: Target) -> None:
    array = np.array(MATRIX)
    array[3, 77] = value
    with pytest.raises(WeightsError, match=r"'a\.b\.weight' holds values that are not finite"):
        list(blocks(source(mx.array(array)), target))


def test_values_too_large_for_float16_are_refused() -> None:
    for value in (70000.0, -70000.0):
        array = MATRIX * 1
        array[2, 5] = value
        for kind in (mx.float32, mx.bfloat16):
            with pytest.raises(WeightsError, match="convert with --dtype bfloat16"):
                list(blocks(source(array.astype(kind)), Target("float16")))
        assert list(blocks(source(array), Target("bfloat16")))
    array[2, 5] = 65504.0
    assert list(blocks(source(array), Target("float16")))


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_round_trip_through_a_folder(tmp_path: Path, hf_folder, llama_config, bits: int) -> None:
    """What mlx-lm dequantises is as near to the source as its bits allow, and it answers with finite logits."""
    from mlx_lm.utils import load_model

    report = convert(hf_folder(llama_config), tmp_path / "dst", bits=bits, group_size=32)
    model, config = load_model(tmp_path / "dst")
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2, 3]])))))
    largest = {16: 5e-4, 8: 0.008, 4: 0.12, 2: 0.6}[bits]
    smallest = {16: 1e-5, 8: 0.001, 4: 0.02, 2: 0.1}[bits]
    assert smallest < report.errors["attention"] < largest
    assert any("expect nonsense" in note for note in report.notes) is (bits == 2)
    quantized = {"group_size": 32, "bits": bits, "mode": "affine"}
    assert config.get("quantization") == (None if bits == 16 else quantized)


def test_rules_become_exceptions_that_mlx_lm_reads(tmp_path: Path, hf_folder, llama_config) -> None:
    from mlx_lm.utils import load_model

    rules = [Rule("*embed*", 8, 32), Rule("*.layers.1.*down*", 16)]
    convert(hf_folder(llama_config), tmp_path / "dst", bits=4, rules=rules)
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["quantization"]["model.embed_tokens"] == {"group_size": 32, "bits": 8}
    model, _ = load_model(tmp_path / "dst")
    assert model.model.embed_tokens.bits == 8 and model.layers[0].mlp.down_proj.bits == 4
    assert not hasattr(model.layers[1].mlp.down_proj, "bits")
    assert bool(mx.all(mx.isfinite(model(mx.array([[1, 2]])))))
