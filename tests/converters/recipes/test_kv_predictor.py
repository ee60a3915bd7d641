"""Training a predictor: gradients, a step down the loss, and rows that generation reads as training computed them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.recipes.base import Batch, Objective
from russet.converters.recipes.kv_forward import AUXILIARY, MAPS, RUN, compared_keys, met_as_own
from russet.converters.recipes.kv_predictor import KVPredictor, PredictorOptions
from russet.converters.recipes.optimizer import AdamW
from russet.converters.recipes.ridge import Ridge
from russet.converters.recipes.source import Params, Source
from russet.engine.errors import InvalidOptionError, PredictorError, UnsupportedModelError
from russet.engine.prefill.base import PromptTokens
from russet.engine.prefill.exact import Exact
from russet.engine.prefill.kv_prediction import KVPrediction
from russet.engine.prefill.predictor_folder import load_predictor, save_predictor
from russet.models.loading import load_decoder

START = mx.array(0.0)
VARIANTS = {
    "frozen": PredictorOptions(keep=0.7),
    "trained": PredictorOptions(keep=0.7, trained=1, auxiliary=0.5),
    "one layer": PredictorOptions(keep=0.34, inputs="keys_values", trained=1),
    "mixed": PredictorOptions(keep=0.7, near=4, least=2, real=0.3),
    "as published": PredictorOptions(keep=0.5, layers="spread", inputs="keys_values", trained=2, auxiliary=1.0),
}


def opened(source: Source, options: PredictorOptions, batches: list[Batch] | None = None) -> tuple[KVPredictor, Params]:
    recipe = KVPredictor(options)
    recipe.open(source, mx.float32)
    if batches is not None:
        recipe.calibrate(batches)
    return recipe, recipe.start()


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_go_down_the_loss(source: Source, batches: list[Batch], variant: str) -> None:
    recipe, params = opened(source, VARIANTS[variant], batches)
    step = mx.value_and_grad(lambda params: recipe.loss(params, batches[0], None, START)[0])
    zeros = {name: mx.zeros_like(array) for name, array in params.items()}
    moments, losses = (zeros, dict(zeros)), []
    for count in range(4):
        loss, gradients = step(params)
        losses.append(loss.item())
        rate, at = mx.array(3e-3), mx.array(count + 1.0)
        params, moments, _ = AdamW().update(moments, params, gradients, rate, at, recipe.treatment)
    assert losses[0] > losses[1] > losses[2] > losses[3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(source: Source, batches: list[Batch], variant: str) -> None:
    """Along one random direction for every trained array, through the frozen base."""
    recipe, params = opened(source, VARIANTS[variant])
    recipe.weights_of_loss = Objective(kl=1.0, ce=0.3)
    loss = lambda params: recipe.loss(params, batches[0], None, START)[0]  # noqa: E731
    gradients, generator = mx.grad(loss)(params), np.random.default_rng(0)
    if variant == "trained":
        assert {name.split(".")[0] + "." for name in params} == {MAPS, AUXILIARY}
    for name, array in params.items():
        way = mx.array(generator.normal(size=array.shape).astype(np.float32))
        way = way * (3e-2 / mx.linalg.norm(way))
        ends = [loss({**params, name: array + sign * way}).item() for sign in (1, -1)]
        slope = (gradients[name] * way).sum().item()
        assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=0.05, abs=2e-5), name


def test_the_loss_is_the_weighted_sum_of_its_terms(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source, replace(VARIANTS["trained"], l1=0.7))
    recipe.weights_of_loss = Objective(kl=1.0, ce=0.3)
    total, terms = recipe.loss(params, batches[0], None, START)
    weights = {"kl": 1.0, "ce": 0.3, "l1_keys": 0.7, "l1_values": 0.7, "auxiliary": 0.5}
    assert terms.keys() == weights.keys() and all(terms[name].item() > 0 for name in terms)
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in terms), rel=1e-5)


def test_keys_are_compared_behind_a_norm_that_comes_before_the_rotation() -> None:
    golden = Path(__file__).parents[2] / "golden"
    keys = mx.random.normal((1, 2, 5, 64), key=mx.random.key(3))
    for family, normed in (("qwen3", True), ("afm", False), ("llama", False)):
        decoder = load_decoder(golden / family, "float32")
        spec = decoder.config.layers[0]
        given = keys[:, : spec.kv_heads, :, : spec.head_dim]
        norm = decoder.blocks[0].k_norm
        assert (norm is not None and not decoder.blocks[0].rotate_first) == normed
        expected = norm(given) if normed and norm is not None else given
        assert mx.array_equal(compared_keys(decoder, 0, given), expected)
        assert normed != mx.array_equal(expected, given)


def test_nothing_of_the_base_is_trained(source: Source) -> None:
    _, params = opened(source, VARIANTS["frozen"])
    assert {name.removeprefix(MAPS).rpartition(".")[0] for name in params} == {"layers.2.keys", "layers.2.values"}
    recipe, params = opened(source, VARIANTS["trained"])
    assert {name.split(".")[2] for name in params if name.startswith(AUXILIARY)} == {"1"}
    decaying = {name for name in params if recipe.treatment(name).decays}
    assert f"{AUXILIARY}layers.1.gate" in decaying
    assert not any(name.startswith(MAPS) or name.endswith("norm") for name in decaying)


def test_calibration_comes_closer_than_the_projections_of_the_base(source: Source, batches: list[Batch]) -> None:
    losses = [
        recipe.loss(params, batches[0], None, START)[1]
        for recipe, params in (opened(source, VARIANTS["frozen"], given) for given in (batches[:1], None))
    ]
    assert losses[0]["l1_keys"].item() < losses[1]["l1_keys"].item()
    assert losses[0]["l1_values"].item() < losses[1]["l1_values"].item()


def test_the_report_tells_the_work_and_what_is_explained(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source, VARIANTS["frozen"], batches[:1])
    report = recipe.report(params, batches[:1], lambda: None)
    # Two whole layers and the third's keys and values, against one whole, the second's, and two maps of 32 x 64.
    layer, rows = 64 * (64 + 32 + 32 + 64 + 3 * 96), 2 * 32 * 64
    assert report["prefill_share"] == pytest.approx((layer + rows + rows) / (2 * layer + rows))
    assert (report["kept"], report["map_weights"], report["own_weights"]) == ([0, 1], rows, 0)
    assert set(report["explained"]) == {"layers.2.keys", "layers.2.values"}
    assert report["start"]["kl"] == pytest.approx(recipe.loss(params, batches[0], None, START)[1]["kl"].item())
    worse = recipe.report({n: a * 0.5 for n, a in params.items()}, batches[:1], lambda: None)
    assert all(0 < worse["explained"][name] < value < 1 for name, value in report["explained"].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_reads_the_rows_that_training_computed(
    source: Source, batches: list[Batch], tmp_path: Path, variant: str
) -> None:
    recipe, params = opened(source, VARIANTS[variant], batches)
    mx.random.seed(0)
    params = {name: array + 0.02 * mx.random.normal(array.shape) for name, array in params.items()}
    params = {name: array.astype(mx.float16).astype(mx.float32) for name, array in params.items()}
    save_predictor(recipe.predictor(params), tmp_path / "p")
    # Matrices of the auxiliary's own are stored in 6 bits.
    params |= {AUXILIARY + name: array.astype(mx.float32) for name, array in load_predictor(tmp_path / "p").own.items()}
    tokens = batches[0].tokens[:1]
    base, h, watch = recipe._shared_rows(tokens)
    base.run(h, range(recipe.shared, 3), 0, base.new_cache(), probe=watch)
    seen, _ = recipe._auxiliary(params, h, watch)
    given, _ = recipe._rows(params, base, seen, watch)
    decoder = load_decoder(source.folder, "float32")
    cache = decoder.new_cache()
    prompt = PromptTokens([*np.array(tokens[0]).tolist(), 7])
    done = KVPrediction(tmp_path / "p", keep=0)(decoder, prompt, cache)
    assert done.strategy == "kv-prediction"
    for layer in recipe.mapped:
        keys, values, _ = cache.slot(layer).read(25, 1)
        expected = given.slots[layer].rows
        for found, wanted in zip((keys, values), expected, strict=True):
            assert mx.abs(found[:, :, :24] - wanted).max() < 1e-4 * mx.abs(wanted).max(), layer


def test_maps_and_own_layers_are_written_packed(source: Source, batches: list[Batch], tmp_path: Path) -> None:
    recipe, params = opened(source, VARIANTS["trained"], batches)
    recipe.write(tmp_path, params)
    stored = mx.load(str(tmp_path / "predictor.safetensors"))
    assert isinstance(stored, dict) and stored["layers.2.keys.weight"].dtype == mx.uint32
    assert stored["auxiliary.layers.1.up.weight"].dtype == mx.uint32
    # 64 inputs: four of 8 bits or five and a third of 6 a number of 32.
    assert stored["layers.2.keys.weight"].shape[1] == 16 and stored["auxiliary.layers.1.up.weight"].shape[1] == 12
    given, loaded = recipe.predictor(params), load_predictor(tmp_path)
    assert loaded.weights.keys() == given.weights.keys() and loaded.own.keys() == given.own.keys()
    for name, array in given.weights.items():
        assert mx.allclose(loaded.weights[name], array, atol=0.01 * mx.abs(array).max().item()), name


def test_a_pass_of_own_rows_is_the_base_s(source: Source, batches: list[Batch]) -> None:
    """With every row near, no predicted one is met; with few, some are."""
    kl = {}
    for near in (0, 4, 1000):
        recipe, params = opened(source, PredictorOptions(keep=0.7, near=near), batches)
        kl[near] = recipe.loss(params, batches[0], None, START)[1]["kl"].item()
    recipe, params = opened(source, PredictorOptions(keep=0.7, near=24, least=1), batches)
    kl[24] = recipe.loss(params, batches[0], None, START)[1]["kl"].item()
    assert abs(kl[1000]) < 1e-6 < kl[4] < kl[0]
    # All 24 rows are near, but in texts that drew fewer.
    assert 1e-6 < kl[24] < kl[0]


def test_near_and_chosen_positions_are_met_as_own() -> None:
    tokens = mx.random.randint(0, 500, (64, 40), key=mx.random.key(1))
    own = np.array(met_as_own(tokens, 3, 0.25))
    assert own.shape == (64, 1, 40, 40) and np.array_equal(own, np.array(met_as_own(tokens, 3, 0.25)))
    assert not np.array_equal(own, np.array(met_as_own(tokens + 1, 3, 0.25)))
    far = own[:, 0, -1, :37]
    runs = far[:, :32].reshape(64, 2, RUN)
    assert (runs.all(axis=2) == runs.any(axis=2)).all() and 0.1 < runs.mean() < 0.4
    assert own[:, 0, range(2, 40), range(38)].all() and not own[:, 0, 39, :][far.sum(axis=1) == 0][:, :37].any()


def test_texts_draw_how_many_are_near() -> None:
    tokens = mx.random.randint(0, 500, (64, 40), key=mx.random.key(1))
    own = np.array(met_as_own(tokens, 9, 0.0, 4))
    assert own.shape == (64, 1, 40, 40) and np.array_equal(own, np.array(met_as_own(tokens, 9, 0.0, 4)))
    counts = own[:, 0, -1].sum(axis=1)
    assert set(counts) == set(range(4, 10))
    for text, count in zip(own[:, 0], counts, strict=True):
        assert np.array_equal(np.tril(text), np.tril(np.ones((40, 40), bool)) & ~np.tri(40, 40, -count, bool))


def test_own_layers_end_before_one_whose_norm_alone_is_read(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source, PredictorOptions(keep=1.0, trained=1), batches)
    assert {name.split(".")[2] for name in params if name.startswith(AUXILIARY)} == {"1"}
    assert recipe.shared == 1 and recipe.unmapped == (0,) and recipe.mapped == [1, 2]
    decoder = load_decoder(source.folder, "float32")
    prompt = PromptTokens(np.array(batches[0].tokens[0]).tolist())
    found = KVPrediction(recipe.predictor(params), keep=0)(decoder, prompt, decoder.new_cache())
    exact = Exact()(decoder, prompt, decoder.new_cache())
    # Nothing is trained yet: the maps find the base's own projections of its own rows.
    assert mx.abs(found.logits - exact.logits).max() < 0.05 * mx.abs(exact.logits).max()


def test_maps_of_the_same_rows_are_joined_without_a_difference(source: Source, batches: list[Batch]) -> None:
    recipe, params = opened(source, PredictorOptions(keep=0.34), batches)
    predictor = recipe.predictor(params).astype(mx.float32)
    _, h, watch = recipe._shared_rows(batches[0].tokens)
    seen, _ = recipe._auxiliary(params, h, watch)
    found = {layer: rows for layer, *rows in predictor.predict_all(seen)}
    assert sorted(found) == [0, 1, 2] and recipe.mapped == [1, 2]
    for layer, rows in found.items():
        for ours, theirs in zip(rows, predictor.predict(layer, seen[0]), strict=True):
            assert ours.shape == theirs.shape and mx.allclose(ours, theirs, atol=1e-5)


def test_layers_that_the_auxiliary_shares_are_exact(source: Source, batches: list[Batch], tmp_path: Path) -> None:
    recipe, params = opened(source, PredictorOptions(keep=1.0), batches)
    assert not params and recipe.unmapped == (0, 1, 2)
    save_predictor(recipe.predictor(params), tmp_path / "p")
    decoder, prompt = load_decoder(source.folder, "float32"), PromptTokens(list(range(30)))
    predicted = KVPrediction(tmp_path / "p")(decoder, prompt, decoder.new_cache()).logits
    assert mx.allclose(predicted, Exact()(decoder, prompt, decoder.new_cache()).logits, atol=1e-4)


def test_ridge_regression_is_least_squares_with_a_penalty() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 5)), generator.normal(size=(60, 3))
    ridge = Ridge()
    for part in (slice(0, 25), slice(25, 60)):
        ridge.add(mx.array(x[None, part].astype(np.float32)), {"y": mx.array(y[None, part].astype(np.float32))})
    (weight, bias) = ridge.solve(0.5)["y"]
    # The penalty as rows of their own, which leave the bias free.
    rows = np.sqrt(0.5 * np.square(x).sum() / 5) * np.eye(5)
    wide = np.concatenate([np.c_[x, np.ones(60)], np.c_[rows, np.zeros(5)]])
    solved = np.linalg.lstsq(wide, np.concatenate([y, np.zeros((5, 3))]), rcond=None)[0]
    assert np.allclose(np.array(weight), solved[:5].T, atol=1e-4) and np.allclose(np.array(bias), solved[5], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (PredictorOptions(layers="last"), "layers is 'last'; it must be first or spread"),
        (PredictorOptions(inputs="rows"), "inputs is 'rows'; it must be keys_values or normed"),
        (PredictorOptions(trained=3), "trained is 3, but the auxiliary has 1 layers to train"),
        (PredictorOptions(real=0.2), "real tokens need near ones"),
        (PredictorOptions(near=4, least=5), "near is 4, least 5"),
        (PredictorOptions(keep=0.0), "share of layers to keep is 0.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(source: Source, options: PredictorOptions, problem: str) -> None:
    with pytest.raises(InvalidOptionError, match=problem):
        opened(source, options)


def test_a_base_that_shares_keys_and_values_is_refused(source: Source) -> None:
    layers = (*source.config.layers[:2], replace(source.config.layers[2], kv_source=1))
    with pytest.raises(UnsupportedModelError, match="no predictor is trained"):
        opened(replace(source, config=replace(source.config, layers=layers)), PredictorOptions())


@pytest.fixture
def trained(source: Source) -> Any:
    recipe, params = opened(source, VARIANTS["trained"])
    return recipe.predictor(params)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda own: own.pop("layers.1.up"), "The auxiliary's layer 1 lacks layers.1.up"),
        (lambda own: own.update({"layers.1.qkv": mx.zeros((128, 64))}), "holds layers.1.k, which its base has no use"),
        (lambda own: own.update({"layers.1.q": mx.zeros((64, 32))}), "layers.1.q has shape .*, but its base asks for"),
        (lambda own: own.update({"layers.9.q": mx.zeros((64, 64))}), "layers.9.q has shape"),
        (lambda own: own.update({"norm": mx.zeros((64,))}), "norm has shape"),
    ],
)
def test_layers_that_are_not_the_auxiliary_s_are_refused(
    source: Source, trained: Any, tmp_path: Path, change: Any, problem: str
) -> None:
    change(trained.own)
    save_predictor(trained, tmp_path / "p")
    with pytest.raises(PredictorError, match=problem):
        KVPrediction(tmp_path / "p").prepare(load_decoder(source.folder, "float32"))


def test_own_layers_of_another_packing_are_refused(trained: Any, tmp_path: Path) -> None:
    save_predictor(trained, tmp_path / "p")
    file = tmp_path / "p" / "predictor.safetensors"
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    tensors["auxiliary.layers.1.q.weight"] = tensors["auxiliary.layers.1.q.weight"][:, :8]
    mx.save_safetensors(str(file), tensors)
    with pytest.raises(PredictorError, match="is not weights of 6 or 8 bits in groups of 64"):
        load_predictor(tmp_path / "p")
