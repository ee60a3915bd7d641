"""Training for 2-bit weights: what the step computes is what the folder holds, and a step goes down the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from russet.converters.recipes.base import Batch
from russet.converters.recipes.forward import hidden_rows
from russet.converters.recipes.optimizer import AdamW
from russet.converters.recipes.qat2 import QAT2, QatOptions, mlx_rounded
from russet.converters.recipes.source import Params, Source
from russet.converters.recipes.trainer import teacher_of
from russet.converters.recipes.two_bit import CLIP, TwoBit, affine
from russet.converters.sparsify import sparsify
from russet.engine.errors import InvalidOptionError, UnsupportedModelError, WeightsError
from russet.kernels.packed import Format
from russet.models.families import family_of
from russet.models.fused_layer import _form
from russet.models.linear import Affine, Quantized, branches
from russet.models.loading import load_decoder
from russet.models.weights import Weights

START = mx.array(0.0)
Writer = Callable[[Any, Path], Path]


def opened(source: Source, **options: Any) -> tuple[QAT2, Params]:
    recipe = QAT2(QatOptions(**{"group": 32, **options}))
    recipe.open(source, mx.float32)
    return recipe, recipe.start()


def relu(source: Source) -> Source:
    raw = {**source.raw, "hidden_act": "relu"}
    return replace(source, raw=raw, config=family_of(raw).read(raw))


def moved(params: Params) -> Params:
    """Parameters that training has been at: other weights, other clipping."""
    mx.random.seed(1)
    found = {name: array + 0.05 * mx.random.normal(array.shape) for name, array in params.items()}
    # Adapters are stored in 16 bits.
    return {n: a.astype(mx.float16).astype(mx.float32) if "adapter" in n else a for n, a in found.items()}


@pytest.mark.parametrize("clip", ["tensor", "scale"])
def test_steps_go_down_the_loss(source: Source, batches: list[Batch], clip: str) -> None:
    recipe, params = opened(source, clip=clip)
    teacher = teacher_of(recipe)(batches[0].tokens)
    step = mx.value_and_grad(lambda params: recipe.loss(params, batches[0], teacher, START)[0])
    zeros = {name: mx.zeros_like(array) for name, array in params.items()}
    moments, losses = (zeros, dict(zeros)), []
    for count in range(4):
        loss, gradients = step(params)
        losses.append(loss.item())
        params, moments, _ = AdamW().update(
            moments, params, gradients, mx.array(3e-3), mx.array(count + 1.0), recipe.treatment
        )
    assert losses[0] > losses[1] > losses[2] > losses[3] and losses[3] < 0.9 * losses[0]
    assert mx.abs(params["layers.1.gate" + CLIP]).max().item() > 0, "clipping is learned"


def test_nothing_decays_and_clipping_has_a_rate_of_its_own(source: Source) -> None:
    recipe, params = opened(source, clip_rate=0.1)
    assert not any(recipe.treatment(name).decays for name in params)
    assert {recipe.treatment(name).rate for name in params if name.endswith(CLIP)} == {0.1}
    assert {recipe.treatment(name).rate for name in params if not name.endswith(CLIP)} == {1.0}


@pytest.mark.parametrize(
    ("options", "act"),
    [
        ({"group": 32}, "silu"),
        ({"group": 0, "clip": "scale"}, "silu"),
        ({"embedding_bits": 16}, "silu"),
        ({"adapter": 4}, "silu"),
        ({}, "relu"),
    ],
)
def test_a_loaded_folder_computes_what_the_step_computed(
    source: Source, batches: list[Batch], tmp_path: Path, written: Writer, options: dict, act: str
) -> None:
    if act == "relu":
        source = relu(source)
    recipe, params = opened(source, **options)
    params = moved(params)
    folder = written(recipe.export(params), tmp_path / "model")
    loaded, tokens = load_decoder(folder, "float32"), batches[0].tokens
    trained = recipe.decoder(params, START)
    ours = trained.head(trained.run(trained.embed(tokens), range(3), 0, trained.new_cache(batch=4)))
    theirs = loaded.extend(tokens, loaded.new_cache(batch=4), logits=tokens.shape[1])
    # Norms are stored in 16 bits; every weight is equal to the bit.
    assert theirs is not None and mx.allclose(ours, theirs, atol=2e-2 * mx.abs(ours).max().item())
    weights = recipe.weights(params, START)
    for block, layer in zip(loaded.blocks, range(3), strict=True):
        (out,) = block.out.arrays
        assert mx.array_equal(out.T, weights[f"layers.{layer}.o"])
        (down,) = block.down.arrays
        assert mx.array_equal(down.T if down.shape != (64, 96) else down, weights[f"layers.{layer}.down"])
    embed = loaded.embed.weight
    assert isinstance(embed, mx.array) and mx.array_equal(embed, weights["embed"])


def test_the_kernels_find_the_levels_balanced(source: Source, tmp_path: Path, written: Writer) -> None:
    recipe, params = opened(relu(source))
    exported = recipe.export(moved(params))
    folder, config = written(exported, tmp_path / "model"), recipe.config
    names = recipe.source.family.names(config)
    weights = Weights(folder, exported.config, names, config)
    for role in ("layers.0.q", "layers.2.up", "layers.1.down"):
        assert weights.packed_layout(names[role]) == (2, 32)
        packed = weights.weight(role, mx.float16, expand=False)
        assert isinstance(packed, Affine)
        assert _form(packed, mx.float16).kind == Format(2, 32, True)
    assert weights.weight("layers.0.down", mx.float16, expand=False).weight.shape[0] == 96, "a neuron a row"
    embed = weights.weight("embed", mx.float16, expand=False)
    assert isinstance(embed, Affine) and embed.bits == 4


def test_a_folder_has_no_offsets_and_its_size_is_what_the_report_says(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source)
    exported = recipe.export(params)
    body = {n: a for n, a in exported.tensors.items() if ".layers." in n and "norm" not in n}
    assert not any(name.endswith(".biases") for name in body)
    count = sum(array.size for name, array in params.items() if TwoBit.rounds(name))
    report = recipe.report(params, batches, lambda: None)
    assert 8 * sum(array.nbytes for array in body.values()) / count == report["bits_per_body_weight"] == 2.5
    assert report["codes_changed"] == 0 and report["clipping"] == {"least": 1.0, "mean": 1.0, "most": 1.0}
    assert recipe.report(moved(params), batches, lambda: None)["codes_changed"] > 0.01


def test_the_report_tells_what_training_won_back(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source)
    told, once = recipe.report(params, batches, lambda: None), recipe.report(moved(params), batches, lambda: None)
    assert told["gap"] == {"perplexity": 1.0, "nats": 1.0} and once["gap"]["nats"] != 1.0
    found = told["perplexity"]
    assert found["result"] == found["round_to_nearest"] and len(set(found.values())) == 4
    rows = hidden_rows(recipe.decoder(params, START), batches[0].tokens)
    logits = recipe.decoder(params, START).output(rows.final)
    loss = nn.losses.cross_entropy(logits, batches[0].labels, reduction="mean").item()
    assert np.log(recipe.report(params, batches[:1], lambda: None)["perplexity"]["result"]) == pytest.approx(
        loss, rel=1e-4
    )
    four = mlx_rounded(source.weights, 4)["layers.0.q"]
    packed = mx.quantize(source.weights["layers.0.q"].astype(mx.float16), 64, 4)
    assert mx.allclose(four, mx.dequantize(*packed, 64, 4), atol=1e-3)


def test_packed_weights_with_an_adapter_multiply_as_expanded_ones_do(
    source: Source, tmp_path: Path, written: Writer
) -> None:
    recipe, params = opened(source, adapter=4)
    exported, config = recipe.export(moved(params)), recipe.config
    weights = Weights(written(exported, tmp_path / "m"), exported.config, source.family.names(config), config)
    packed, other = (weights.weight(f"layers.0.{part}", mx.float32, expand=False) for part in ("q", "k"))
    assert isinstance(packed, Affine) and isinstance(other, Affine) and packed.adapter is not None
    x = mx.random.normal((3, 64))
    expected = x @ packed.expand(mx.float32).T
    assert mx.allclose(Quantized(packed)(x), expected, atol=1e-4)
    joined = branches([packed, other], [None, None], join=True)
    assert len(joined.maps) == 2 and mx.allclose(joined(x)[0], expected, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match="adapters"):
        _form(packed, mx.float16)
    without = mx.dequantize(packed.weight, packed.scales, packed.biases, 32, 2)
    assert not mx.allclose(packed.expand(mx.float32), without, atol=1e-2)
    assert recipe.rounding.bits_per_weight(params) > 2.5


def test_a_table_s_gradient_is_its_own() -> None:
    table, onto = mx.random.normal((8, 64)), mx.random.normal((8, 64))
    assert 0 < mx.abs(affine(table, 4) - table).max().item() < 0.5
    assert mx.array_equal(mx.grad(lambda table: (affine(table, 4) * onto).sum())(table), onto)


def test_rounding_comes_in_over_the_ramp_and_is_whole_behind_it(source: Source) -> None:
    recipe, params = opened(source, ramp=0.5)
    whole = recipe.rounding.weights(params)
    for at, share in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (1.0, 1.0)):
        found = recipe.weights(params, mx.array(at))
        for name in ("layers.0.gate", "embed", "layers.1.ffn_norm"):
            between = params[name] + share * (whole[name] - params[name])
            assert mx.allclose(found[name], between, atol=1e-6), (at, name)
    onto = mx.random.normal(params["layers.0.q"].shape)
    slopes = [
        mx.grad(lambda params: (recipe.weights(params, at)["layers.0.q"] * onto).sum())(params)  # noqa: B023
        for at in (mx.array(0.1), mx.array(1.0))
    ]
    assert mx.array_equal(slopes[0]["layers.0.q"], slopes[1]["layers.0.q"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"clip": "layer"}, "clip is 'layer'; it must be tensor or scale"),
        ({"embedding_bits": 3}, "embedding_bits is 3; it must be 4, 8 or 16"),
        ({"group": 64}, "Rows of 96 weights do not divide into groups of 64"),
        ({"group": 7}, "The group size is 7"),
        ({"adapter": -1}, "The adapter's rank is -1"),
        ({"ramp": 1.0}, "ramp is 1.0; it is a part of the run"),
    ],
)
def test_options_that_do_not_fit_are_refused(source: Source, options: dict, problem: str) -> None:
    with pytest.raises(InvalidOptionError, match=problem):
        opened(source, **options)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"mode": "mxfp4"}, UnsupportedModelError, "MLX's affine mode and its own, 'balanced'"),
        ({"bits": 4}, UnsupportedModelError, "'balanced' to 4 bits in groups of 32; 2 bits in"),
        ({"group_size": 48}, UnsupportedModelError, "in groups of 48; 2 bits in"),
        ({"group_size": 64}, WeightsError, "is not a 2-bit tensor of shape .* in groups of 64"),
        ({"group_size": 0}, WeightsError, "is not a 2-bit tensor of shape"),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(
    source: Source, tmp_path: Path, written: Writer, change: dict, error: type[Exception], problem: str
) -> None:
    recipe, params = opened(source)
    exported = recipe.export(params)
    exported.config["quantization"] |= change
    with pytest.raises(error, match=problem):
        load_decoder(written(exported, tmp_path / "model"), "float32")


def test_two_bit_neurons_are_not_rounded_a_second_time(source: Source, tmp_path: Path, written: Writer) -> None:
    recipe, params = opened(source)
    exported = recipe.export(params)
    exported.config["hidden_act"] = "relu"
    out = tmp_path / "out"
    with pytest.raises(InvalidOptionError, match="trained for 2 bits with groups along its inputs"):
        sparsify(written(exported, tmp_path / "model"), out)
    assert not out.exists()


def test_rows_behind_the_rounding_are_finite(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source)
    rows = hidden_rows(recipe.decoder(params, START), batches[0].tokens)
    assert np.isfinite(np.array(rows.final)).all()
