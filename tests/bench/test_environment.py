from __future__ import annotations

import json
import subprocess
from pathlib import Path

from russet.bench.environment import environment, git_revision, model_hash, version


def test_the_stamp_is_json_and_names_machine_and_versions() -> None:
    found = json.loads(json.dumps(environment()))
    for name in ("device", "cpu", "cores", "memory_bytes", "os", "python", "russet", "mlx"):
        assert found[name], name


def test_a_package_that_is_missing_has_no_version() -> None:
    assert version("surely-not-a-package-of-this-machine") is None


def test_the_revision_says_where_files_differ_from_it(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path)
    assert clean is not None and len(clean) == 12
    (tmp_path / "file").write_text("b")
    assert git_revision(tmp_path) == f"{clean}-modified"


def test_the_hash_is_of_configuration_and_weights(tmp_path: Path) -> None:
    for name, content in {"config.json": b"{}", "model.safetensors": b"12", "tokenizer.json": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    before = model_hash(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"y")
    assert model_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"13")
    assert model_hash(tmp_path) != before
