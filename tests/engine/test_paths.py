from __future__ import annotations

from pathlib import Path

import pytest

from russet.engine.paths import cache_root, models_dir


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("RUSSET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("platform", "environment", "root"),
    [
        ("linux", {}, "/home/me/.cache/russet"),
        ("linux", {"XDG_CACHE_HOME": "/var/c"}, "/var/c/russet"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/russet"),
        ("darwin", {"XDG_CACHE_HOME": "/var/c"}, "/home/me/Library/Caches/russet"),
        ("darwin", {"RUSSET_CACHE": "/mine"}, "/mine"),
        ("linux", {"RUSSET_CACHE": "~/mine"}, "/home/me/mine"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, platform, environment, root):
    monkeypatch.setattr("sys.platform", platform)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(root)
    assert models_dir() == Path(root) / "models"
