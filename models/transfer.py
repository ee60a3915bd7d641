"""Fetch one file over HTTP: resumed where it was cut, verified, and put in place in one step."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, cast

from russet.engine.errors import DownloadError
from russet.engine.progress import Progress
from russet.engine.storage import require_space, writing

_TIMEOUT_S = 15.0
_ATTEMPTS = 4  # in a row without a byte; one that brings bytes starts the count again
_PAUSE_S = 1.0
_BLOCK = 1 << 20
_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)


def open_url(
    url: str, headers: dict[str, str] | None = None, *, timeout: float = _TIMEOUT_S
) -> http.client.HTTPResponse:
    """Open an http or https address, with the user's proxies, certificates, and name and password in the address.

    Raises DownloadError, whose message is a clause: what hindered.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise DownloadError(f"{url} is not an http address")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
    request = urllib.request.Request(bare.geturl(), headers={"User-Agent": "russet"} | (headers or {}))
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        # Unredirected: a redirect to another host must not carry the password there.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        response = urllib.request.urlopen(request, timeout=timeout, context=_tls())
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{bare.netloc} answered {error.code} {error.reason}") from error
    except NETWORK_ERRORS as error:
        raise DownloadError(f"{bare.netloc} cannot be reached ({_short(error)})") from error
    return cast(http.client.HTTPResponse, response)


def download(url: str, dst: Path, *, nbytes: int, sha256: str, progress: Progress) -> None:
    """Fetch the `nbytes` of `url` into `dst`, whose folder exists.

    What has come is in `dst` with `.part` appended until it is complete and its SHA-256 is right; a later call
    goes on from there. Raises DownloadError, and StorageError before anything is fetched if the disk has no room.
    """
    part = dst.with_name(f"{dst.name}.part")
    require_space(dst.parent, nbytes - _size(part))
    progress.start(dst.name, nbytes)
    try:
        _fill(url, part, nbytes, progress)
    finally:
        progress.finish()
    with writing(part):
        try:
            verify(part, sha256)
        except DownloadError:
            part.unlink()
            raise
        part.replace(dst)


def verify(path: Path, sha256: str) -> None:
    """Raise DownloadError unless the file's SHA-256 is `sha256`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(
            f"{path.name.removesuffix('.part')} has SHA-256 {found[:12]}…, not the {sha256[:12]}… that was expected"
        )


def _fill(url: str, part: Path, nbytes: int, progress: Progress) -> None:
    """Append to `part` until it is `nbytes` long, over as many connections as it takes."""
    if _size(part) > nbytes:
        part.unlink()
    have = _size(part)
    progress.advance(have)
    failures = 0
    while have < nbytes:
        try:
            _continue(url, part, nbytes, progress)
            hindrance = DownloadError("the connection was cut")
        except DownloadError as error:
            hindrance = error
        before, have = have, _size(part)
        failures = 0 if have > before else failures + 1
        if failures == _ATTEMPTS or _permanent(hindrance):
            raise DownloadError(f"{hindrance}, {have} of {nbytes} bytes are kept") from hindrance
        if have < nbytes:
            time.sleep(_PAUSE_S)


def _continue(url: str, part: Path, nbytes: int, progress: Progress) -> None:
    """Append what one connection brings; a server that ignores ranges sends what is there once more."""
    have = _size(part)
    with open_url(url, {"Range": f"bytes={have}-"} if have else None) as response:
        start = _start(response)
        if start not in (0, have):
            raise DownloadError(f"the server sends from byte {start} where {have} was asked for")
        skip = have - start
        with writing(part), part.open("ab") as file:
            while file.tell() < nbytes and (block := _read(response, skip or nbytes - file.tell())):
                if skip:
                    skip -= len(block)
                    continue
                file.write(block)
                progress.advance(len(block))
            file.flush()
            os.fsync(file.fileno())


def _read(response: IO[bytes], most: int) -> bytes:
    """Read a block; a broken connection is a DownloadError, so that only the disk's faults are OSErrors."""
    try:
        return response.read(min(_BLOCK, most))
    except NETWORK_ERRORS as error:
        raise DownloadError(f"the connection broke ({_short(error)})") from error


def _start(response: http.client.HTTPResponse) -> int:
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _permanent(error: DownloadError) -> bool:
    """Whether asking again is of no use: the server answered, and refused."""
    cause = error.__cause__
    return isinstance(cause, urllib.error.HTTPError) and 400 <= cause.code < 500 and cause.code not in (408, 429)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _short(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _tls() -> ssl.SSLContext:
    own = next((path for name in _CERTIFICATES if (path := os.environ.get(name)) and Path(path).is_file()), None)
    context = ssl.create_default_context(cafile=own)
    if not own and not context.cert_store_stats()["x509_ca"]:
        # python.org's builds for macOS come without certificates.
        import certifi

        context.load_verify_locations(certifi.where())
    return context
