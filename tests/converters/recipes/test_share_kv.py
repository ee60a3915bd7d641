"""share_kv over the rows of several layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.converters.recipes import recipe_class
from russet.converters.recipes.base import Batch, Objective, Options, Recipe
from russet.converters.recipes.combined import CombinedOptions
from russet.converters.recipes.forward import decoder_of, hidden_rows
from russet.converters.recipes.listener import Silent
from russet.converters.recipes.reader_fit import _folded, _Sums, fit_readers, one_each
from russet.converters.recipes.run import Run
from russet.converters.recipes.share_kv import ShareOptions, share_last
from russet.converters.recipes.source import Params, open_source
from russet.converters.recipes.trainer import teacher_of
from russet.engine.errors import InvalidOptionError
from russet.models.families import family_of, read_decoder
from russet.models.rope import Rotary
from russet.models.shapes import expected_shapes

TURNS = {"russet": {"kv_source": [None, None, None, 2, 1, 2]}}


@pytest.fixture(scope="module")
def six(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers whose guesses are near uniform."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("six") / "six")
    raw = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 6}
    (folder / "config.json").write_text(json.dumps(raw))
    shapes, key, tensors = expected_shapes(read_decoder(raw)), mx.random.key(5), {}
    for role, name in family_of(raw).names(read_decoder(raw)).items():
        key, own = mx.random.split(key)
        noise = mx.random.normal(shapes[role], key=own)
        scale = 0.02 if role == "embed" else 0.2
        tensors[f"{name}.weight"] = 1 + 0.1 * noise if len(shapes[role]) == 1 else scale * noise
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return folder


@pytest.fixture
def tokens() -> mx.array:
    return mx.random.randint(0, 250, (2, 40), key=mx.random.key(3))


def test_readers_take_turns() -> None:
    raw = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 64, "num_attention_heads": 4}
    raw |= {"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 259, "rms_norm_eps": 1e-5}
    for slots, wanted in ((1, [18] * 11), (4, [18, 17, 16, 15] * 2 + [18, 17, 16]), (11, list(range(18, 7, -1)))):
        assert share_last(raw, 3 / 8, slots)["russet"]["kv_source"] == [None] * 19 + wanted
    for slots in (0, 12):
        with pytest.raises(InvalidOptionError, match="give 1 to 11"):
            share_last(raw, 3 / 8, slots)


@pytest.mark.parametrize("blend", [0.5, 0.0])
def test_it_goes_from_the_source_to_the_result(six: Path, tokens: mx.array, tmp_path: Path, blend: float) -> None:
    source, recipe = (
        open_source(six),
        recipe_class("share_kv")(ShareOptions(share=0.5, slots=2, blend=blend)),
    )
    recipe.open(source, mx.float32)

    def rows_at(at: float) -> mx.array:
        decoder = recipe.decoder(recipe.start(), mx.array(at))
        return hidden_rows(decoder, tokens, cache=recipe.sequence(decoder, mx.array(at))).final

    (tmp_path / "result").mkdir()
    recipe.write(tmp_path / "result", recipe.start())
    result = open_source(tmp_path / "result")
    assert result.raw["russet"] == TURNS["russet"] and "layers.4.k" not in result.weights
    after = hidden_rows(decoder_of(result.config, result.weights, mx.float32), tokens).final
    before = hidden_rows(decoder_of(source.config, source.weights, mx.float32), tokens).final
    np.testing.assert_allclose(rows_at(0.0), before if blend else after, atol=1e-4)
    np.testing.assert_allclose(rows_at(0.5), after, atol=1e-4)


def test_layers_before_the_first_shared_one_stay_and_change_nothing(six: Path, tokens: mx.array) -> None:
    """The loss and its gradients are those of running all layers, and layer 1, whose rows are read, is trained."""
    options = ShareOptions(share=0.5, slots=2, blend=0.5, trained="readers")
    recipe = recipe_class("share_kv")(options, Objective(hidden=1e-9))
    recipe.open(open_source(six), mx.float32)
    params, batch, at = recipe.start(), Batch(tokens[:, :-1], tokens[:, 1:]), mx.array(0.2)
    teacher = teacher_of(recipe)(batch.tokens)
    assert "layers.1.k" in params and not any(name.startswith("layers.0.") for name in params)

    def short(params: Params) -> mx.array:
        return recipe.loss(params, batch, teacher, at)[0]

    def whole(params: Params) -> mx.array:
        return Recipe.loss(recipe, params, batch, teacher, at)[0]

    (ours, by_ours), (all_layers, by_all) = mx.value_and_grad(short)(params), mx.value_and_grad(whole)(params)
    assert ours.item() > 1e-4 and ours.item() == pytest.approx(all_layers.item(), rel=1e-4)
    for name, gradient in by_all.items():
        assert mx.allclose(by_ours[name], gradient, rtol=1e-3, atol=1e-6), name
    assert mx.abs(by_ours["layers.1.v"]).max().item() > 0


class Kill(Silent):
    def step(self, step: int, tokens: int, terms: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt


def test_it_learns_is_resumed_and_served(make_run: Callable[..., Run], six: Path, data: Path, tmp_path: Path) -> None:
    (data / "train_01.bin").unlink()
    (data / "train_00.bin").write_bytes((data / "train_00.bin").read_bytes()[: 2 * 65])
    given = {
        "steps": 12, "options": ShareOptions(share=0.5, slots=2), "src": six, "settings": {"rate": 3e-4}
    }  # fmt: skip
    run = make_run("share_kv", **given)
    report = run()
    losses = [float(line.split(",")[3]) for line in (run.dst / "curve.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.95 * max(losses)
    assert report.own == {
        "kv_bytes_per_token": {"before": 768, "after": 384},
        "prefill_layers": {"before": 6, "after": 3},
    }
    with pytest.raises(KeyboardInterrupt):
        make_run("share_kv", **given, dst=tmp_path / "cut", checkpoint_s=0.0)(Kill())
    make_run("share_kv", **given, dst=tmp_path / "cut", resume=True)()
    ours, theirs = (mx.load(str(folder / "model.safetensors")) for folder in (tmp_path / "cut", run.dst))
    assert isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
    assert russet.load(run.dst).generate("ab", max_tokens=3, raw=True).tokens


def test_combined_takes_turns_as_well(make_run: Callable[..., Run], six: Path) -> None:
    run = make_run("combined", options=CombinedOptions(bits=16, share=0.5, slots=2), src=six)
    run()
    assert json.loads((run.dst / "config.json").read_text())["russet"] == TURNS["russet"]


def test_a_layer_fitted_to_its_own_rows_stays_as_it_is(six: Path) -> None:
    source = open_source(six)
    found = fit_readers(source, {3: 3, 5: 5}, [mx.random.randint(0, 250, (4, 64), key=mx.random.key(1))])
    assert sorted(found) == ["layers.3.o", "layers.3.q", "layers.5.o", "layers.5.q"]
    for name, array in found.items():
        np.testing.assert_allclose(array, source.weights[name], atol=0.03)


@pytest.mark.parametrize(("interleaved", "dims"), [(False, 16), (True, 16), (False, 8)])
def test_projections_for_rows_that_differ_by_what_can_be_folded_are_exact(
    six: Path, interleaved: bool, dims: int
) -> None:
    """Own keys are other heads' turned and scaled, own values other heads' times a matrix: attention is the same."""
    source = open_source(six)
    spec = source.config.layers[3]
    spec = replace(spec, rope=replace(spec.rope, interleaved=interleaved, dims=dims))
    source = replace(source, config=replace(source.config, layers=(spec,) * 6))
    keys, values = (mx.random.normal((1, 2, 200, 16), key=mx.random.key(i)) for i in (0, 1))
    maps = mx.random.normal((2, 16, 16), key=mx.random.key(2))
    # Turned by an angle and scaled: the pairs of a rotation at a position of its own for every head.
    turns = [Rotary(spec.rope).at(position, 1, False) for position in (3, 11)]
    turned = [turn(keys[0, h][:, None, None])[:, 0, 0] for h, turn in enumerate(turns)]
    own_keys = mx.stack([1.5 * turned[1], 0.5 * turned[0]])[None]
    own_values = mx.stack([values[:, 1] @ maps[0], values[:, 0] @ maps[1]], axis=1)
    sums = _Sums(spec)
    sums.add((keys, values), (own_keys, own_values))
    stand_ins = sums.solve(keys=True)
    assert [each.own for each in stand_ins] == [1, 0]
    found = _folded(source, 3, stand_ins)
    x, rotate = mx.random.normal((1, 200, 64), key=mx.random.key(4)), Rotary(spec.rope).at(0, 200, False)

    def attended(q: mx.array, o: mx.array, k: mx.array, v: mx.array) -> mx.array:
        queries = rotate((x @ q.T).reshape(1, 200, 4, 16).transpose(0, 2, 1, 3))
        mixed = mx.fast.scaled_dot_product_attention(queries, rotate(k), v, scale=0.25, mask="causal")
        return mixed.transpose(0, 2, 1, 3).reshape(1, 200, 64) @ o.T

    wanted = attended(source.weights["layers.3.q"], source.weights["layers.3.o"], own_keys, own_values)
    ours = attended(found["layers.3.q"], found["layers.3.o"], keys, values)
    assert mx.square(ours - wanted).sum().item() < 1e-4 * mx.square(wanted).sum().item()


def test_no_own_head_is_stood_in_for_twice() -> None:
    """The first column is the best for all rows; the row that gains most gets it, and the next best pair follows."""
    assert one_each(np.array([[0.8, 0.7, 0.1], [0.9, 0.2, 0.3], [0.7, 0.6, 0.2]])) == [1, 0, 2]


def test_queries_under_a_norm_keep_their_size() -> None:
    golden = open_source(Path(__file__).parents[2] / "golden" / "qwen3")
    found = fit_readers(golden, {2: 1}, [mx.random.randint(0, 60, (2, 32), key=mx.random.key(0))])
    ours, theirs = (np.sort(np.array(q).ravel()) for q in (found["layers.2.q"], golden.weights["layers.2.q"]))
    np.testing.assert_array_equal(ours, theirs)


def test_uneven_heads_are_refused() -> None:
    golden = open_source(Path(__file__).parents[2] / "golden" / "openelm")
    heads = [layer.kv_heads for layer in golden.config.layers]
    reader = next(i for i in range(1, len(heads)) if heads[i] != heads[0])
    with pytest.raises(InvalidOptionError, match=r"set blend=0\.1"):
        fit_readers(golden, {reader: 0}, [mx.zeros((1, 8), mx.int32)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("share_kv", ShareOptions(share=0.5, slots=2)),
        ("combined", CombinedOptions(bits=16, share=0.5, slots=2)),
        ("combined", CombinedOptions(share=0.5, slots=2, group=32, ramp=0.5)),
    ],
)
def test_fitted_readers_begin_nearer_to_the_source(six: Path, name: str, options: Options) -> None:
    """Combined's gates are still the source's then, and with a ramp its weights."""
    text = mx.random.randint(0, 250, (8, 65), key=mx.random.key(1))
    recipe = recipe_class(name)(options)
    recipe.open(open_source(six), mx.float32)
    batch, teacher = Batch(text[:, :-1], text[:, 1:]), teacher_of(recipe)(text[:, :-1])
    plain = recipe.loss(recipe.start(), batch, teacher, mx.array(0.0))[1]["hidden"].item()
    recipe.calibrate([batch])
    fitted = recipe.loss(recipe.start(), batch, teacher, mx.array(0.0))[1]["hidden"].item()
    assert fitted < 0.8 * plain


def test_layers_that_share_rows_already_stay_as_they_are(make_run: Callable[..., Run], six: Path) -> None:
    """Combined's second stage solves for nothing."""
    run = make_run("share_kv", options=ShareOptions(share=0.5), src=six)
    run()
    recipe = recipe_class("combined")(CombinedOptions(bits=16))
    recipe.open(open_source(run.dst), mx.float32)
    before = recipe.start()
    recipe.calibrate([Batch(ids := mx.zeros((1, 8), mx.int32), ids)])
    assert all(mx.array_equal(array, before[role]) for role, array in recipe.start().items())
