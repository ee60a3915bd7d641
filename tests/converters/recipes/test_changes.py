"""relufy, share_kv and combined: what they change, step by step from the source to the result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.converters.recipes import recipe_class
from russet.converters.recipes.base import Batch, Objective, Options, Recipe
from russet.converters.recipes.combined import CombinedOptions
from russet.converters.recipes.forward import decoder_of, hidden_rows
from russet.converters.recipes.relufy import Gates, ReluOptions, gate_penalty
from russet.converters.recipes.run import Run
from russet.converters.recipes.share_kv import ShareOptions
from russet.converters.recipes.source import Params, Source, open_source
from russet.converters.recipes.sparsity_report import measure_sparsity
from russet.converters.recipes.trainer import teacher_of
from russet.engine.errors import InvalidOptionError
from russet.models.decoder import Decoder

MakeRun = Callable[..., Run]


def opened(name: str, source: Source, options: Options | None = None) -> Recipe:
    recipe = recipe_class(name)(options)
    recipe.open(source, mx.float32)
    return recipe


def rows_at(recipe: Recipe, tokens: mx.array, at: float) -> np.ndarray:
    """The last rows at a point of the training, with the weights of the start."""
    decoder = recipe.decoder(recipe.start(), mx.array(at))
    return np.array(hidden_rows(decoder, tokens, cache=recipe.sequence(decoder, mx.array(at))).final)


def rows_of(decoder: Decoder, tokens: mx.array) -> np.ndarray:
    return np.array(hidden_rows(decoder, tokens).final)


@pytest.fixture
def tokens() -> mx.array:
    return mx.random.randint(0, 250, (2, 40), key=mx.random.key(3))


CHANGES = [
    ("relufy", ReluOptions(soften=0.5)),
    ("relufy", ReluOptions(soften=0.5, shift=0.02)),
    ("share_kv", ShareOptions(blend=0.5)),
    ("combined", CombinedOptions(bits=16, soften=0.5, blend=0.5)),
]


@pytest.mark.parametrize(("name", "options"), CHANGES)
def test_it_goes_from_the_source_to_the_result(
    source: Source, tokens: mx.array, tmp_path: Path, name: str, options: Options
) -> None:
    recipe = opened(name, source, options)
    before = rows_of(decoder_of(source.config, source.weights, mx.float32), tokens)
    np.testing.assert_allclose(rows_at(recipe, tokens, 0.0), before, atol=1e-5)
    recipe.write(folder := _new(tmp_path / "result"), recipe.start())
    result = open_source(folder)
    after = rows_of(decoder_of(result.config, result.weights, mx.float32), tokens)
    np.testing.assert_allclose(rows_at(recipe, tokens, 0.5), after, atol=1e-5)
    middle = rows_at(recipe, tokens, 0.25)
    assert not np.allclose(middle, before, atol=1e-3) and not np.allclose(middle, after, atol=1e-3)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_stage_two_cuts_rows_at_zero(source: Source, tokens: mx.array) -> None:
    recipe = opened("relufy", source, ReluOptions(stage=2, soften=0.0))
    assert recipe.raw["russet"] == {"relu_norms": True}
    decoder = decoder_of(recipe.config, recipe.start(), mx.float32)
    found = measure_sparsity(decoder, [Batch(tokens, tokens)], lambda: None)
    assert 0.3 < found["gate_up"] < 0.7


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("relufy", {"stage": 3}, "stage is 3"),
        ("relufy", {"sparsity": 1.0}, r"sparsity is 1\.0"),
        ("relufy", {"penalty": -1.0}, r"penalty is -1\.0"),
        ("relufy", {"shift": math.nan}, "shift is nan; a finite number"),
        ("relufy", {"soften": 2.0}, r"soften is 2\.0; it is a part of the run"),
        ("relufy", {"anneal": -0.5}, r"anneal is -0\.5; it is a part of the run"),
        ("share_kv", {"blend": 1.0}, r"blend is 1\.0; it is a part of the run"),
        ("combined", {"bits": 16, "sparsity": 1.5}, r"sparsity is 1\.5"),
        ("combined", {"bits": 16, "blend": 2.0}, r"blend is 2\.0; it is a part of the run"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    source: Source, name: str, options: dict[str, float], problem: str
) -> None:
    with pytest.raises(InvalidOptionError, match=problem):
        opened(name, source, recipe_class(name).options_type(**options))


def test_a_relu_model_is_not_made_one_again(source: Source, tmp_path: Path) -> None:
    recipe = opened("relufy", source)
    recipe.write(folder := _new(tmp_path / "result"), recipe.start())
    with pytest.raises(InvalidOptionError, match="have ReLU already"):
        opened("relufy", open_source(folder))


def test_zeros_are_counted_as_they_are(source: Source, tokens: mx.array) -> None:
    recipe = opened("relufy", source)
    decoder = decoder_of(recipe.config, recipe.start(), mx.float32)
    gates: list[np.ndarray] = []

    class Keep(Gates):
        def ffn(self, layer: int, x: mx.array, gate: mx.array, up: mx.array) -> None:
            gates.append(np.array(gate))

    hidden_rows(decoder, tokens, probe=Keep(0.0))
    found = measure_sparsity(decoder, [Batch(tokens, tokens)], lambda: None)
    assert found["gate_up"] == 0
    for layer, gate in zip(found["layers"], gates, strict=True):
        assert layer["down"] == pytest.approx((gate <= 0).mean(), abs=1e-6)
    windows = [(gate[:, :40].reshape(2, 5, 8, -1) <= 0).all(axis=2).mean() for gate in gates]
    assert found["aggregated"]["8"] == pytest.approx(np.mean(windows), abs=1e-6)
    shares = list(found["aggregated"].values())
    assert shares == sorted(shares, reverse=True)


def test_the_penalty_follows_its_target() -> None:
    probe, options = Gates(0.0), ReluOptions(sparsity=0.9, penalty=10.0, anneal=0.5)
    probe.ffn(0, mx.zeros((1,)), mx.array([-1.0, -1.0, 1.0, 2.0, -3.0]), mx.zeros((1,)))
    early, terms = gate_penalty(probe, mx.array(0.0), options)
    late, _ = gate_penalty(probe, mx.array(0.5), options)
    assert terms["active"].item() == pytest.approx(0.4) and early.item() == 0
    assert late.item() == pytest.approx(10 * (0.4 - 0.1) * probe.counts[0].item(), rel=1e-5)


def test_the_penalty_makes_gates_sparse(make_run: MakeRun) -> None:
    """Half are below zero at the start."""
    run = make_run("relufy", steps=25, options=ReluOptions(anneal=0.01, penalty=40.0), settings={"rate": 1e-2})
    assert run().own["sparsity"]["down"] > 0.6


def test_combined_is_made_in_two_stages(make_run: MakeRun, source_folder: Path, tmp_path: Path) -> None:
    first = make_run("combined", options=CombinedOptions(bits=16), dst=tmp_path / "first")
    first()
    rounded = CombinedOptions(group=32)
    second = make_run("combined", options=rounded, src=tmp_path / "first", teacher=source_folder, steps=8)
    report = second()
    config = json.loads((second.dst / "config.json").read_text())
    assert config["hidden_act"] == "relu" and config["russet"] == {"kv_source": [None, None, 1]}
    assert config["ffn_down"] == "neuron_major" and config["quantization"]["bits"] == 2
    assert report.own["kv_bytes_per_token"] == {"before": 384, "after": 256} and report.teacher == source_folder.name
    assert report.own["bits_per_body_weight"] == pytest.approx(2.5)
    assert russet.load(second.dst).generate("ab", max_tokens=2, raw=True).tokens


def test_combined_rounds_no_rows_that_fade_out(make_run: MakeRun) -> None:
    with pytest.raises(InvalidOptionError, match="bits=16 first"):
        make_run("combined", options=CombinedOptions(group=32, blend=0.15))()
    with pytest.raises(InvalidOptionError, match="bits is 3"):
        make_run("combined", options=CombinedOptions(bits=3))()


def test_layers_that_stay_the_source_s_are_not_run_again_and_change_nothing(source: Source, tokens: mx.array) -> None:
    """The loss and its gradients are those of running all layers."""
    recipe = recipe_class("share_kv")(ShareOptions(blend=0.5, trained="readers"), Objective(hidden=1e-9))
    recipe.open(source, mx.float32)
    params, batch, at = recipe.start(), Batch(tokens[:, :-1], tokens[:, 1:]), mx.array(0.2)
    teacher = teacher_of(recipe)(batch.tokens)
    assert all(not name.startswith("layers.0.") for name in params)

    def short(params: Params) -> mx.array:
        return recipe.loss(params, batch, teacher, at)[0]

    def whole(params: Params) -> mx.array:
        return Recipe.loss(recipe, params, batch, teacher, at)[0]

    (ours, by_ours), (all_layers, by_all) = mx.value_and_grad(short)(params), mx.value_and_grad(whole)(params)
    assert ours.item() > 1e-4
    assert ours.item() == pytest.approx(all_layers.item(), rel=1e-4)
    for name, gradient in by_all.items():
        assert mx.allclose(by_ours[name], gradient, rtol=1e-3, atol=1e-6), name
