"""The safetensors reader against files that MLX wrote, and against damaged headers."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from russet.engine.errors import CheckpointError
from russet.models.safetensors_file import MAX_HEADER_BYTES, open_safetensors


def craft(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: tuple = (2,), begin: int = 0, end: int = 8) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint32", "int64", "bool_"]
)
def test_reads_what_mlx_wrote(tmp_path: Path, dtype: str) -> None:
    array = mx.arange(24).reshape(2, 3, 4).astype(getattr(mx, dtype))
    path = tmp_path / "a.safetensors"
    mx.save_safetensors(str(path), {"x": array, "y": array[0], "scalar": array[0, 0, 1]}, {"format": "mlx"})
    file = open_safetensors(path)
    assert file.metadata == {"format": "mlx"}
    assert file.tensors["x"].shape == (2, 3, 4) and file.tensors["scalar"].shape == ()
    for name, expected in {"x": array, "y": array[0], "scalar": array[0, 0, 1]}.items():
        assert file.read(name).dtype == array.dtype
        assert mx.array_equal(file.read(name), expected)


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    import numpy as np

    data = np.array([1.5, -2.25]).tobytes()
    file = open_safetensors(craft(tmp_path / "a.safetensors", {"x": entry("F64", (2,), 0, 16)}, data))
    assert file.read("x").tolist() == [1.5, -2.25] and file.read("x").dtype == mx.float32


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        pytest.param({"x": entry()}, b"1234", None, "run 4 bytes past the end", id="data cut short"),
        pytest.param({"x": entry()}, b"12345678!", None, "1 bytes that belong to no tensor", id="trailing"),
        pytest.param({"x": entry()}, b"", 10_000, "announces a header of 10,000 bytes but only", id="header cut short"),
        pytest.param({}, b"", MAX_HEADER_BYTES + 1, "over the limit", id="oversized header"),
        pytest.param({}, b"", 2**64 - 1, "over the limit", id="length of all ones"),
        pytest.param(b"{'x': 1}", b"", None, "not valid JSON", id="bad JSON"),
        pytest.param(b"\xff\xfe{}", b"", None, "not valid JSON", id="bad UTF-8"),
        pytest.param(b"[" * 100_000, b"", None, "not valid JSON", id="deep nesting"),
        pytest.param(b"[1]", b"", None, "not a JSON object", id="JSON list"),
        pytest.param(b'{"x": 1, "x": 2}', b"", None, "appears twice", id="duplicate name"),
        pytest.param({"x": 3}, b"", None, "malformed entry", id="entry is a number"),
        pytest.param({"x": {"dtype": "F32", "shape": [2]}}, b"", None, "malformed", id="no offsets"),
        pytest.param({"x": entry(shape=(-2,))}, b"12345678", None, "malformed", id="negative size"),
        pytest.param({"x": entry(shape=(2.0,))}, b"12345678", None, "malformed", id="fractional size"),
        pytest.param({"x": entry("F33")}, b"12345678", None, "unknown dtype 'F33'", id="unknown dtype"),
        pytest.param({"x": entry("F8_E4M3")}, b"12345678", None, "stored as F8_E4M3", id="fp8"),
        pytest.param({"x": entry(shape=(3,))}, b"12345678", None, "takes 12", id="shape and size differ"),
        pytest.param({"x": entry(), "y": entry()}, b"12345678", None, "'y' overlaps", id="overlap"),
        pytest.param({"x": entry(begin=4, end=12)}, b"0" * 12, None, "hole", id="hole"),
        pytest.param({"__metadata__": {"a": 1}}, b"", None, "not a table of strings", id="metadata"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header, data, length, message: str) -> None:
    path = craft(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_safetensors(path)
    assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_too_short_for_a_length_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="has 3 bytes"):
        open_safetensors(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="could not be read"):
        open_safetensors(tmp_path / "absent.safetensors")
