"""Fetch a model repository from the Hugging Face hub, through the hub's own client and cache."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from russet.engine.errors import DownloadError, ModelNotFoundError, RussetError
from russet.engine.storage import of_the_disk, writing
from russet.models.transfer import open_url

_HUB = "https://huggingface.co"
_REACH_S = 4.0
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_FILES = ("*.json", "tokenizer.model", "*.jinja", "*.txt")


def fetch_repository(repository: str, *, show_bars: bool) -> Path:
    """Return the folder of a snapshot of `repository` ("org/name") in the hub's cache, as complete as loading needs.

    Downloads are resumed by the hub's client. Each file's content is checked against the hash that it is stored
    under, SHA-256 for weights and git's SHA-1 for the rest. HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN mean
    what they always mean. Raises DownloadError and StorageError; without a network, at once.
    """
    hindrance = _hindrance()
    try:
        folder = Path(_snapshot(repository, local_files_only=bool(hindrance), show_bars=show_bars))
    except Exception as error:  # the client raises what its HTTP library raises, which differs between versions
        if of_the_disk(error):
            with writing(Path("the hub's cache")):
                raise
        raise _told(error, repository, hindrance) from error
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            _verify(file)
    return folder


def _hindrance() -> str:
    """Why the hub cannot be asked; empty if it can. The client itself would try for much longer."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set and its cache does not hold the model"
    try:
        open_url(os.environ.get("HF_ENDPOINT") or _HUB, timeout=_REACH_S).close()
    except DownloadError as error:
        return "" if " answered " in str(error) else str(error)
    return ""


def _snapshot(repository: str, *, local_files_only: bool, show_bars: bool) -> str:
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.utils import tqdm

    class NoBars(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})

    patterns = [*_WEIGHTS, *_FILES]
    if not local_files_only and any(name.endswith(".safetensors") for name in list_repo_files(repository)):
        patterns.remove("pytorch_model*.bin")
    return snapshot_download(
        repository,
        allow_patterns=patterns,
        local_files_only=local_files_only,
        tqdm_class=None if show_bars else NoBars,
    )


def _verify(file: Path) -> None:
    """Compare a cached file with its hash, which is the name of the blob that the cache links it to."""
    blob = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    else:
        return  # a cache without links keeps no hashes
    with blob.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise DownloadError(f"{file.name} in the hub's cache is damaged: delete {blob}")


def _told(error: Exception, repository: str, hindrance: str) -> RussetError:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelNotFoundError(
            f"The hub shows no repository {repository}: check the name or, if its owner restricts it, "
            "accept the licence on the website and set HF_TOKEN."
        )
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return DownloadError(hindrance or first_line)
