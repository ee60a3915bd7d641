"""GGUF tensors: every stored type equals the gguf package's own expansion, packed or dense."""

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from russet.converters.gguf_file import AFFINE, GGUFFile
from russet.engine.errors import CheckpointError, UnsupportedModelError

QUANTIZABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
# The gguf package reads these but cannot write them: any bytes are valid blocks, if their scales are finite.
READ_ONLY = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ2_XXS"]
SHAPE = (6, 512)


def write(path: Path, data: np.ndarray, kind: str, **metadata: str) -> Path:
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sample(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, SHAPE).astype(np.float32)
    qtype = gguf.GGMLQuantizationType[kind]
    if kind in QUANTIZABLE:
        return quantize(values, qtype)
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    # 0x2A as the high byte of every half keeps scales finite wherever they lie.
    data = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // per_block, block_bytes), dtype=np.uint8)
    data[..., :2] = data[..., -2:] = np.frombuffer(np.float16(0.05).tobytes(), np.uint8)
    return data.reshape(SHAPE[0], -1)


@pytest.mark.parametrize("kind", QUANTIZABLE + READ_ONLY)
def test_every_type_expands_as_gguf_does(tmp_path: Path, kind: str) -> None:
    data = sample(kind)
    tensor = GGUFFile(write(tmp_path / "a.gguf", data, kind)).tensors["x"]
    assert tensor.shape == SHAPE
    expected = dequantize(data, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(np.array(tensor.read().astype(mx.float32)), expected, equal_nan=True)


@pytest.mark.parametrize("kind", AFFINE)
def test_affine_types_stay_packed_and_exact(tmp_path: Path, kind: str) -> None:
    data = sample(kind)
    tensor = GGUFFile(write(tmp_path / "a.gguf", data, kind)).tensors["x"]
    assert tensor.read_packed is not None
    packed, bits = tensor.read_packed(), tensor.packed_bits
    assert packed.weight.dtype == mx.uint32 and packed.weight.shape == (6, 512 * bits // 32)
    assert packed.scales.dtype == packed.biases.dtype == mx.float16 and packed.scales.shape == (6, 16)
    scales, biases = packed.scales.astype(mx.float32), packed.biases.astype(mx.float32)
    written = mx.dequantize(packed.weight, scales, biases, 32, bits)
    assert np.array_equal(np.array(written), dequantize(data, gguf.GGMLQuantizationType[kind]))


def test_every_code_of_an_affine_type_survives(tmp_path: Path) -> None:
    """Random data might miss a code: here each occurs, in blocks whose scale is 1."""
    for kind, (bits, header, centre) in AFFINE.items():
        rng = np.random.default_rng(0)
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        blocks = rng.integers(0, 256, (8, 16, size), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        if centre is None:
            blocks[..., 2:4] = 0
        tensor = GGUFFile(write(tmp_path / f"{kind}.gguf", blocks.reshape(8, -1), kind)).tensors["x"]
        values = np.array(tensor.read())
        assert np.unique(values).size == 2**bits, (kind, header)


def test_types_that_cannot_be_expanded_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", np.zeros((6, 512), np.int8), "I8")
    with pytest.raises(UnsupportedModelError, match="stored as I8"):
        _ = GGUFFile(path).tensors


def test_files_cut_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", sample("Q4_0"), "Q4_0", **{"general.name": "tiny"})
    data = path.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"a\.gguf") as caught:
            GGUFFile(path).require("general.name", str)
        assert "\n" not in str(caught.value)


def test_damaged_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", sample("F32"), "F32", **{"general.name": "tiny"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tiny", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(CheckpointError, match=r"'general\.name' is damaged"):
        GGUFFile(path).get("general.name")
    path.write_bytes(b"GGUF" + (1 << 70).to_bytes(16, "little") * 3)
    with pytest.raises(CheckpointError, match="not a complete GGUF"):
        GGUFFile(path)
    with pytest.raises(CheckpointError, match="could not be read"):
        GGUFFile(tmp_path / "absent.gguf")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"lacks the metadata 'llama\.block_count'"):
        GGUFFile(path).number("block_count", int)
    with pytest.raises(CheckpointError, match="has 'tiny' for"):
        GGUFFile(path).require("general.name", int)
