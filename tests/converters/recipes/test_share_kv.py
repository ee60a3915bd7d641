"""share_kv over the rows of several layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.converters.recipes import recipe_class
from russet.converters.recipes.base import Batch, Objective, Recipe
from russet.converters.recipes.combined import CombinedOptions
from russet.converters.recipes.forward import decoder_of, hidden_rows
from russet.converters.recipes.listener import Silent
from russet.converters.recipes.run import Run
from russet.converters.recipes.share_kv import ShareOptions, share_last
from russet.converters.recipes.source import Params, open_source
from russet.converters.recipes.trainer import teacher_of
from russet.engine.errors import InvalidOptionError
from russet.models.families import family_of, read_decoder
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
    source, recipe = open_source(six), recipe_class("share_kv")(ShareOptions(share=0.5, slots=2, blend=blend))
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
        "steps": 12, "options": ShareOptions(share=0.5, slots=2, blend=0.2), "src": six, "settings": {"rate": 3e-4}
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
