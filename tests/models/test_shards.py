"""Finding a folder's weight files, and refusing to leave the folder."""

import json
from pathlib import Path

import pytest

from russet.engine.errors import CheckpointError, UnsafeCheckpointError
from russet.models.shards import INDEX, shards


def index(folder: Path, *names: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}}))


def test_the_index_decides(tmp_path: Path) -> None:
    index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    for name in ("a.safetensors", "b.safetensors", "model-extra.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in shards(tmp_path)] == ["a.safetensors", "b.safetensors"]


def test_without_an_index_every_model_file_counts(tmp_path: Path) -> None:
    for name in ("model-2.safetensors", "model-1.safetensors", "adapter.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in shards(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:\\secret", "\\\\host\\x"]
)
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").touch()
    index(tmp_path / "model", name)
    with pytest.raises(UnsafeCheckpointError, match="outside the folder"):
        shards(tmp_path / "model")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    index(tmp_path / "model", "model.safetensors")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeCheckpointError, match="outside the model folder"):
        shards(tmp_path / "model")
    (tmp_path / "model" / INDEX).unlink()
    with pytest.raises(UnsafeCheckpointError, match="outside the model folder"):
        shards(tmp_path / "model")


def test_links_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").touch()
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0123"))
    assert shards(snapshot) == [snapshot / "model.safetensors"]


def test_missing_files_and_damaged_indexes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        shards(tmp_path)
    index(tmp_path, "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 'gone\.safetensors'"):
        shards(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": [1]}}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match="not a JSON index"):
            shards(tmp_path)
    index(tmp_path, 3)
    with pytest.raises(CheckpointError, match="names no files"):
        shards(tmp_path)
