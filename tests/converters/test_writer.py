"""The model folder is there whole or not at all, takes the bytes that were promised, and little memory."""

import errno
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters import convert as convert_module
from russet.converters.base import Source, SourceTensor
from russet.converters.convert import convert
from russet.converters.layout import make_plan
from russet.converters.quantize import Recipe, Rule
from russet.converters.writer import staged_folder, write_folder
from russet.engine.errors import OutputExistsError, StorageError, WeightsError
from russet.engine.progress import SilentProgress
from russet.models.safetensors_file import open_safetensors
from russet.models.shards import shards


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"bits": 2, "group_size": 128, "rules": [Rule("*embed*", 8, 32)]},
        {"dtype": "bfloat16", "max_shard_bytes": 30_000},
    ],
)
def test_a_dry_run_promises_the_very_size(tmp_path: Path, hf_folder, llama_config, options: dict) -> None:
    src = hf_folder(llama_config)
    promised = convert(src, tmp_path / "dst", dry_run=True, **options)
    assert promised.dry_run and not (tmp_path / "dst").exists()
    report = convert(src, tmp_path / "dst", **options)
    assert report.bytes_out == promised.bytes_out == on_disk(tmp_path / "dst")
    assert report.bits_per_weight == promised.bits_per_weight


def test_shards_and_their_index(tmp_path: Path, hf_folder, llama_config) -> None:
    src = hf_folder(llama_config, shards=3)
    whole = convert(src, tmp_path / "one")
    report = convert(src, tmp_path / "many", max_shard_bytes=40_000)
    assert [path.name for path in shards(tmp_path / "one")] == ["model.safetensors"]
    files = shards(tmp_path / "many")
    assert [path.name for path in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 3 and whole.tensors == report.tensors
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    found = {name: path.name for path in files for name in open_safetensors(path).tensors}
    assert index["weight_map"] == found
    joined = {name: value for path in files for name, value in mx.load(str(path)).items()}
    original = mx.load(str(tmp_path / "one" / "model.safetensors"))
    assert joined.keys() == original.keys()
    assert all(mx.array_equal(joined[name], original[name]) for name in joined)
    for path in files:
        tensors = open_safetensors(path).tensors
        assert sum(t.nbytes for t in tensors.values()) <= 40_000 and all(t.offset % 4 == 0 for t in tensors.values())


def test_files_beside_the_weights(tmp_path: Path, hf_folder, llama_config) -> None:
    src = hf_folder(llama_config)
    (src / "tokenizer_config.json").write_text('{"a": "é"}', encoding="utf-8")
    (src / "modeling.py").write_text("print('no')")
    convert(src, tmp_path / "dst", bits=8)
    assert listing(tmp_path / "dst") == [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "dst" / "tokenizer_config.json").read_bytes() == (src / "tokenizer_config.json").read_bytes()
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["torch_dtype"] == "float16"
    assert (tmp_path / "dst").stat().st_mode & 0o777 == src.stat().st_mode & 0o777


def test_an_existing_destination_is_left_alone(tmp_path: Path, hf_folder, llama_config) -> None:
    src = hf_folder(llama_config)
    for name, make in (("folder", Path.mkdir), ("file", Path.touch), ("link", lambda p: p.symlink_to("nowhere"))):
        make(tmp_path / name)
        with pytest.raises(OutputExistsError, match=f"{name} exists already"):
            convert(src, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link", "src"]


def test_a_destination_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="made by something else"), staged_folder(tmp_path / "dst", 0):
        (tmp_path / "dst").mkdir()
    assert listing(tmp_path) == ["dst"]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "is full: free some space"),
        (OSError(errno.EIO, "Input/output error"), StorageError, "cannot be written .Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("after", [0, 5])
def test_failures_while_writing_leave_nothing(
    tmp_path: Path, hf_folder, llama_config, monkeypatch, error, expected, message, after: int
) -> None:
    """The third write of the weights fails, as on a full disk, or Ctrl-C comes."""
    import russet.converters.writer as writer

    src, count, original = hf_folder(llama_config), 0, writer._write_tensor

    def fail(file, tensor) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise error
        original(file, tensor)

    monkeypatch.setattr(writer, "_write_tensor", fail)
    with pytest.raises(expected, match=message):
        convert(src, tmp_path / "deep" / "er" / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_failures_of_verification_leave_nothing(tmp_path: Path, hf_folder, llama_config, monkeypatch) -> None:
    """A bit that the disk flips is noticed."""

    def write_and_damage(folder, plan, progress) -> None:
        write_folder(folder, plan, progress)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 0x40]))

    monkeypatch.setattr(convert_module, "write_folder", write_and_damage)
    for bits in (None, 4):
        with pytest.raises(WeightsError, match="reads back with an error"):
            convert(hf_folder(llama_config, name=f"src{bits}"), tmp_path / "dst", bits=bits)
    assert not (tmp_path / "dst").exists() and not list(tmp_path.glob(".*"))


def test_too_little_room_is_said_before_writing(tmp_path: Path, hf_folder, llama_config, monkeypatch) -> None:
    import russet.converters.writer as writer

    usage = writer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"has 1\.0 kB free but .* are needed"):
        convert(hf_folder(llama_config), tmp_path / "new" / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, hf_folder, llama_config, monkeypatch) -> None:
    src = hf_folder(llama_config)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        convert(src, tmp_path / "file" / "dst")

    def refuse(*_, **__) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"cannot be written .Permission denied"):
        convert(src, tmp_path / "dst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "src"]


@pytest.mark.parametrize("bits", [None, 4])
def test_memory_stays_under_one_shard_and_one_tensor(tmp_path: Path, bits: int | None) -> None:
    """Sixteen tensors of 4 MB in float32, in shards of 8 MB: writing them takes far less than all of them."""
    shape, live = (1024, 1024), 4 << 20

    def tensor(i: int) -> SourceTensor:
        def read() -> mx.array:
            return mx.array(np.full(shape, i / 7, np.float32))

        return SourceTensor(f"layers.{i}.q.weight", shape, "float32", live, read)

    source = Source("test", {"model_type": "llama"}, tuple(tensor(i) for i in range(16)))
    plan = make_plan(source, Recipe(bits=bits, dtype="float32"), 8 << 20)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with staged_folder(tmp_path / "dst", plan.nbytes) as folder:
        write_folder(folder, plan, SilentProgress())
        written = mx.get_peak_memory() - before
        convert_module.verify_folder(folder, plan, SilentProgress())
    largest = max(shard.nbytes for shard in plan.shards)
    assert largest <= (8 << 20) + 4096
    assert written < largest + live
    assert bits is not None or len(plan.shards) == 8
