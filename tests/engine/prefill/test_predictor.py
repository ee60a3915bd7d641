"""KV predictors: the published layer maps, what a folder holds, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.errors import OutputExistsError, PredictorError
from russet.engine.prefill.identity import EQUAL, SAMPLE_TOKENS, Identity
from russet.engine.prefill.predictor import Predictor, Seen, expected_shapes, layer_map, spread
from russet.engine.prefill.predictor_folder import load_predictor, save_predictor
from russet.models.config import DecoderConfig, LayerSpec, Rope
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned, spread_layers
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"


def config(layers: int, sources: dict[int, int] | None = None) -> DecoderConfig:
    spec = LayerSpec(4, 2, 8, 32, Rope(8, 10000.0))
    specs = tuple(replace(spec, kv_source=(sources or {}).get(i)) for i in range(layers))
    return DecoderConfig("llama", 32, 72, specs, 64, 1e-5)


@pytest.fixture(scope="module")
def base() -> Decoder:
    return load_decoder(GOLDEN / "openelm", dtype="float32")


@pytest.fixture
def canonical(base: Decoder) -> Predictor:
    """Random maps from llama's tiny model to OpenELM's."""
    auxiliary = load_decoder(GOLDEN / "llama", dtype="float32")
    known = Identity.of(base, "base"), Identity.of(auxiliary, "small")
    layers = layer_map(base.config, auxiliary.config)
    shapes = expected_shapes(layers, known[0].keys_values, known[1].keys_values)
    generator = np.random.default_rng(0)
    return Predictor(*known, layers, {name: mx.array(generator.normal(size=shape)) for name, shape in shapes.items()})


def repeated(*runs: tuple[range, int]) -> list[int]:
    return [i for layers, times in runs for i in layers for _ in range(times)]


@pytest.mark.parametrize(
    ("auxiliary", "base", "published"),
    [
        (20, 28, repeated((range(8), 2), (range(8, 20), 1))),
        (16, 28, repeated((range(12), 2), (range(12, 16), 1))),
        (28, 36, repeated((range(8), 2), (range(8, 28), 1))),
        (20, 36, repeated((range(16), 2), (range(16, 20), 1))),
        (16, 36, repeated((range(4), 3), (range(4, 16), 2))),
    ],
)
def test_maps_from_smaller_models_are_the_published_ones(auxiliary: int, base: int, published: list[int]) -> None:
    assert list(layer_map(config(base), config(auxiliary))) == published


def test_maps_from_pruned_layers_are_the_published_ones() -> None:
    of_28 = config(28)
    three_quarters = [0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13, 14, 14, 15, 16, 17, 17, 18, 19, 20, 20]
    assert list(layer_map(of_28, spread_layers(of_28, 0.75))) == three_quarters
    assert list(layer_map(of_28, spread_layers(of_28, 0.5))) == repeated((range(14), 2))
    assert list(layer_map(of_28, spread_layers(of_28, 0.25))) == repeated((range(7), 4))
    of_36 = config(36)
    assert list(layer_map(of_36, spread_layers(of_36, 0.25))) == repeated((range(9), 4))


def test_layers_that_read_others_are_not_fed() -> None:
    shared = config(6, {4: 3, 5: 3})
    assert layer_map(shared, config(2)) == (0, 0, 1, 1, None, None)
    assert layer_map(shared, (0, 2, 3, 5)) == (0, 0, 1, 2, None, None)
    assert layer_map(config(4), config(4, {2: 1, 3: 1})) == (0, 0, 1, 1)


def test_a_larger_auxiliary_is_refused() -> None:
    with pytest.raises(PredictorError, match="must be the smaller one"):
        spread(5, 4)


def test_layers_without_keys_feed_nothing() -> None:
    with pytest.raises(PredictorError, match="keep one that does"):
        layer_map(config(4, {3: 2}), (3,))


def test_a_folder_gives_back_what_was_saved(canonical: Predictor, tmp_path: Path) -> None:
    save_predictor(canonical, tmp_path / "p")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["predictor.json", "predictor.safetensors"]
    loaded = load_predictor(tmp_path / "p")
    assert loaded.layer_map == canonical.layer_map == (0, 1, 2)
    for ours, theirs in ((loaded.base, canonical.base), (loaded.auxiliary, canonical.auxiliary)):
        assert isinstance(ours, Identity) and isinstance(theirs, Identity)
        assert replace(ours, sample=()) == replace(theirs, sample=())  # type: ignore[arg-type]
        assert all(np.array_equal(a, b) for a, b in zip(ours.sample, theirs.sample, strict=True))
    assert loaded.weights.keys() == canonical.weights.keys()
    assert all(mx.array_equal(loaded.weights[name], canonical.weights[name]) for name in loaded.weights)


def wide_predictor() -> Predictor:
    """Random maps [64, 64], which groups of 64 divide."""
    sample = np.ones((SAMPLE_TOKENS, 64), np.float32)
    base = Identity("wide", 64, 72, ((2, 32),) * 3, (sample, sample))
    shapes = expected_shapes((0, 0, 0), base.keys_values, base.keys_values, base.hidden_dim)
    generator = np.random.default_rng(0)
    maps = {name: mx.array(generator.normal(size=shape), dtype=mx.float16) for name, shape in shapes.items()}
    return Predictor(base, (0, 1, 2), (0, 0, 0), maps, "normed")


def test_packed_maps_come_back_in_8_bits(tmp_path: Path) -> None:
    """Only matrices are packed, and each number comes back within two steps of its group."""
    predictor = wide_predictor()
    maps = predictor.weights
    save_predictor(predictor, tmp_path / "plain")
    save_predictor(predictor, tmp_path / "packed", packed=True)
    loaded = load_predictor(tmp_path / "packed").weights
    assert loaded.keys() == maps.keys() and load_predictor(tmp_path / "plain").weights.keys() == maps.keys()
    for name, array in maps.items():
        if name.endswith(".bias"):
            assert mx.array_equal(loaded[name], array)
            continue
        groups = np.array(array, dtype=np.float32).reshape(-1, 64)
        apart = np.abs(np.array(loaded[name], dtype=np.float32).reshape(-1, 64) - groups).max(axis=1)
        # A step is about a 255th of a group's range; zero is a level, which moves the others.
        assert apart.max() > 0 and (apart <= 2 * np.ptp(groups, axis=1) / 255).all()
    plain, packed = ((tmp_path / kind / "predictor.safetensors").stat().st_size for kind in ("plain", "packed"))
    assert packed < 0.7 * plain


@pytest.mark.parametrize("damage", ["no groups", "a scalar", "one row", "another rank", "other groups", "other rows"])
def test_packed_maps_of_shapes_that_none_have_are_refused(damage: str, tmp_path: Path) -> None:
    save_predictor(wide_predictor(), tmp_path / "p", packed=True)
    file = tmp_path / "p" / "predictor.safetensors"
    arrays = dict(mx.load(str(file)))
    words, scales, offsets = (f"layers.1.keys.{part}" for part in ("weight", "scales", "biases"))
    half = mx.float16
    changes = {
        "no groups": {scales: mx.zeros((64, 0), half), offsets: mx.zeros((64, 0), half)},
        "a scalar": {words: mx.array(1, mx.uint32)},
        "one row": {name: arrays[name][0] for name in (words, scales, offsets)},
        "another rank": {name: arrays[name][None] for name in (words, scales, offsets)},
        "other groups": {scales: mx.zeros((64, 3), half), offsets: mx.zeros((64, 3), half)},
        "other rows": {scales: mx.zeros((32, 1), half), offsets: mx.zeros((32, 1), half)},
    }
    mx.save_safetensors(str(file), arrays | changes[damage])
    with pytest.raises(
        PredictorError, match=r"layers\.1\.keys\.weight is not weights of 6 or 8 bits .*; it is damaged"
    ):
        load_predictor(tmp_path / "p")


def test_folders_of_version_2_are_read(canonical: Predictor, tmp_path: Path) -> None:
    save_predictor(canonical, tmp_path / "p")
    path = tmp_path / "p" / "predictor.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 2'))
    assert load_predictor(tmp_path / "p").weights.keys() == canonical.weights.keys()


@pytest.mark.parametrize("variant", ["afm", "openelm"])
def test_layers_of_the_base_are_saved_as_numbers(variant: str, tmp_path: Path) -> None:
    decoder = load_decoder(GOLDEN / variant, dtype="float32")
    save_predictor(Predictor.identity(decoder), tmp_path / "p")
    loaded = load_predictor(tmp_path / "p")
    assert loaded.auxiliary == tuple(range(len(decoder.blocks)))
    described = json.loads((tmp_path / "p" / "predictor.json").read_text())
    assert described["auxiliary"] == {"layers": list(range(len(decoder.blocks)))}


def test_prediction_is_the_map_over_all_heads_of_a_row(canonical: Predictor) -> None:
    generator = np.random.default_rng(1)
    keys, values = (generator.normal(size=(1, 2, 5, 8)).astype(np.float32) for _ in range(2))
    predicted = canonical.predict(2, Seen(mx.array(keys), mx.array(values), mx.zeros((1, 5, 32))))
    for part, x, y in zip(("keys", "values"), (keys, values), predicted, strict=True):
        weight, bias = (np.array(canonical.weights[f"layers.2.{part}.{kind}"]) for kind in ("weight", "bias"))
        expected = x[0].transpose(1, 0, 2).reshape(5, 16) @ weight.T + bias
        # Layer 2 of the tiny OpenELM has one key head of 8.
        assert y.shape == (1, 1, 5, 8)
        assert np.allclose(np.array(y[0, 0]), expected, atol=1e-4)


def test_a_folder_appears_whole(canonical: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its last step, a rename, nothing has the predictor's name."""
    rename = Path.rename

    def watch(self: Path, target: Path) -> Path:
        assert sorted(path.name for path in self.iterdir()) == ["predictor.json", "predictor.safetensors"]
        assert not target.exists()
        moved.append(target)
        return rename(self, target)

    moved: list[Path] = []
    monkeypatch.setattr(Path, "rename", watch)
    save_predictor(canonical, tmp_path / "p")
    assert moved == [tmp_path / "p"]


def test_an_existing_folder_is_left_alone(canonical: Predictor, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(OutputExistsError, match="exists already"):
        save_predictor(canonical, tmp_path / "p")
    assert list((tmp_path / "p").iterdir()) == []


def test_a_failed_save_leaves_nothing(canonical: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(RuntimeError):
        save_predictor(canonical, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../elsewhere", "/etc", ".hidden", "org/model", "a b"])
def test_an_auxiliary_s_name_leads_nowhere_else(canonical: Predictor, tmp_path: Path, name: str) -> None:
    assert isinstance(canonical.auxiliary, Identity)
    with pytest.raises(PredictorError, match="catalog name or a folder inside"):
        save_predictor(replace(canonical, auxiliary=replace(canonical.auxiliary, name=name)), tmp_path / "p")
    save_predictor(canonical, tmp_path / "p")
    edit(tmp_path / "p", lambda described: described["auxiliary"].update(name=name))
    with pytest.raises(PredictorError, match="catalog name or a folder inside"):
        load_predictor(tmp_path / "p")


def edit(folder: Path, change: Any) -> None:
    path = folder / "predictor.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


DESCRIPTIONS = [
    (lambda d: d.update(format="other"), "does not describe a KV predictor"),
    (lambda d: d.update(version=1), "this Russet reads 2 and 3"),
    (lambda d: d.pop("base"), "'base' of predictor.json has not the name and sizes"),
    (lambda d: d["base"].update(hidden_dim="32"), "'base' of predictor.json has not the name and sizes"),
    (lambda d: d["base"].update(keys_values=[[2, 8], 7]), "'base' of predictor.json has not the name and sizes"),
    (lambda d: d["base"].update(keys_values=[None]), "sample of 'base' has not the sizes"),
    (lambda d: d["base"].update(hidden_dim=48), "sample of 'base' has not the sizes"),
    (lambda d: d.update(auxiliary=[1]), "'auxiliary' of predictor.json has not the name and sizes"),
    (lambda d: d.update(auxiliary={"layers": []}), "layers in predictor.json are not a list"),
    (lambda d: d.update(auxiliary={"layers": [True]}), "layers in predictor.json are not a list"),
    (lambda d: d.update(auxiliary={"layers": [0, 9]}), "the base has layers 0 to 2 only"),
    (lambda d: d.update(layer_map="0"), "not a list of layers"),
    (lambda d: d.update(layer_map=[0, 1.5, 2]), "not a list of layers"),
    (lambda d: d.update(layer_map=[0, 1]), "has 2 entries, but its base 3 layers"),
    (lambda d: d.update(layer_map=[0, 1, None]), "must be fed, and no others"),
    (lambda d: d.update(layer_map=[0, 1, 3]), "which has no keys and values; the auxiliary has 3 layers"),
]


@pytest.mark.parametrize(("change", "message"), DESCRIPTIONS)
def test_a_wrong_description_is_refused(canonical: Predictor, tmp_path: Path, change: Any, message: str) -> None:
    save_predictor(canonical, tmp_path / "p")
    edit(tmp_path / "p", change)
    with pytest.raises(PredictorError, match=message):
        load_predictor(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "{", "[]", '"' + "x" * 1_000_001 + '"', "[" * 100_000, "\udcff"])
def test_a_description_that_is_no_json_is_refused(canonical: Predictor, tmp_path: Path, text: str) -> None:
    save_predictor(canonical, tmp_path / "p")
    (tmp_path / "p" / "predictor.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PredictorError):
        load_predictor(tmp_path / "p")


def test_a_file_cut_anywhere_is_refused(canonical: Predictor, tmp_path: Path) -> None:
    save_predictor(canonical, tmp_path / "p")
    path = tmp_path / "p" / "predictor.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(PredictorError, match="cannot be used"):
            load_predictor(tmp_path / "p")


@pytest.mark.parametrize("name", ["predictor.json", "predictor.safetensors"])
def test_a_missing_file_is_named(canonical: Predictor, tmp_path: Path, name: str) -> None:
    save_predictor(canonical, tmp_path / "p")
    (tmp_path / "p" / name).unlink()
    with pytest.raises(PredictorError, match=name):
        load_predictor(tmp_path / "p")


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "predictor.safetensors"
    arrays = dict(mx.load(str(path)))  # type: ignore[call-overload]
    mx.eval(arrays)
    change(arrays)
    path.unlink()
    mx.save_safetensors(str(path), arrays)


TENSORS = [
    (lambda a: a.pop("layers.1.keys.bias"), "layers.1.keys.bias is missing"),
    (lambda a: a.pop("auxiliary.values"), "no tensor auxiliary.values"),
    (lambda a: a.update({"layers.0.values.weight": mx.zeros((3, 3))}), r"layers.0.values.weight is of shape \(3, 3\)"),
    (lambda a: a.update({"layers.7.keys.bias": mx.zeros((3,))}), "holds layers.7.keys.bias"),
    (lambda a: a.update({"layers.0.keys.bias": mx.full((16,), float("nan"))}), "not finite"),
    (lambda a: a.update({"layers.0.keys.bias": mx.zeros((16,), mx.int32)}), "is I32"),
]


@pytest.mark.parametrize(("change", "message"), TENSORS)
def test_wrong_tensors_are_refused(canonical: Predictor, tmp_path: Path, change: Any, message: str) -> None:
    save_predictor(canonical, tmp_path / "p")
    rewrite(tmp_path / "p", change)
    with pytest.raises(PredictorError, match=message):
        load_predictor(tmp_path / "p")


def test_a_model_is_known_in_any_number_format(base: Decoder) -> None:
    known = Identity.of(base)
    assert known.difference(base) == "" and known.similarity(base) > 0.999999
    for dtype in ("float16", "bfloat16"):
        other = load_decoder(GOLDEN / "openelm", dtype=dtype)
        assert known.difference(other) == "" and known.similarity(other) > EQUAL


def test_other_models_are_told_apart(base: Decoder) -> None:
    llama = load_decoder(GOLDEN / "llama", dtype="float32")
    known = Identity.of(llama)
    assert known.difference(load_decoder(GOLDEN / "afm")) == "5 layers, not 3"
    assert known.difference(load_decoder(GOLDEN / "qwen3")) == "key heads of other sizes"
    assert known.difference(base) == "key heads of other sizes"
    assert known.difference(load_decoder(GOLDEN / "llama-tied", dtype="float32")) == "other weights"
    assert replace(known, vocab_size=99).difference(llama) == "a vocabulary of 72, not 99"
    assert replace(known, hidden_dim=40).difference(llama) == "a hidden size of 32, not 40"


def test_values_of_the_last_writing_layer_count(base: Decoder) -> None:
    known = Identity.of(base)
    last = known.sample[1]
    assert replace(known, sample=(known.sample[0], -last)).difference(base) == "other weights"
    assert Identity.of(layer_pruned(base, (0, 1, 2))).difference(base) == ""
