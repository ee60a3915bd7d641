"""The PyTorch reader: equal tensors out of honest files, one sentence and no side effect out of others."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from russet.converters.torch_file import LEGACY_MAGIC, read_torch_file
from russet.engine.errors import CheckpointError, UnsafeCheckpointError

COUNT = np.arange(24, dtype=np.float32)


def read(folder: Path, data: bytes) -> dict[str, mx.array]:
    path = folder / "model.pt"
    path.write_bytes(data)
    return {tensor.name: tensor.read() for tensor in read_torch_file(path)}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_dtypes(tmp_path: Path, torch_files, dtype: str) -> None:
    array = COUNT.reshape(2, 3, 4).astype(dtype)
    result = read(tmp_path, torch_files.save({"x": array}))["x"]
    assert np.array_equal(np.array(result), array) and np.array(result).dtype == array.dtype


def test_bfloat16_and_float64(tmp_path: Path, torch_files) -> None:
    bits = (COUNT.view(np.uint32) >> 16).astype(np.uint16)
    state = {
        "b": torch_files.tensor(bits, "0", kind="BFloat16"),
        "d": torch_files.tensor(COUNT.astype(np.float64), "1"),
    }
    result = read(tmp_path, torch_files.archive(state, {"0": bits, "1": COUNT.astype(np.float64)}))
    assert result["b"].dtype == mx.bfloat16 and result["d"].dtype == mx.float32
    for name in "bd":
        assert np.array_equal(np.array(result[name].astype(mx.float32)), COUNT)


def test_views_of_one_storage(tmp_path: Path, torch_files) -> None:
    grid = COUNT.reshape(4, 6)
    state = {
        "whole": torch_files.tensor(COUNT, "0", (4, 6)),
        "transposed": torch_files.tensor(COUNT, "0", (6, 4), (1, 6)),
        "rows": torch_files.tensor(COUNT, "0", (2, 6), (6, 1), offset=12),
        "every other": torch_files.tensor(COUNT, "0", (4, 3), (6, 2), offset=1),
        "number": torch_files.tensor(COUNT, "0", (), (), offset=5),
        "nothing": torch_files.tensor(COUNT, "0", (0, 6), (6, 1)),
    }
    result = read(tmp_path, torch_files.archive(state, {"0": COUNT}))
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "rows": grid[2:],
        "every other": grid[:, 1::2],
        "number": grid[0, 5],
        "nothing": grid[:0],
    }
    for name, value in expected.items():
        assert np.array_equal(np.array(result[name]), value), name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module"])
def test_wrapped_state_dicts(tmp_path: Path, torch_files, wrapper: str | None) -> None:
    state = {"x": torch_files.tensor(COUNT, "0"), "step": 3}
    wrapped = {"epoch": 1, wrapper: state} if wrapper else state
    assert list(read(tmp_path, torch_files.archive(wrapped, {"0": COUNT}))) == ["x"]


def test_ordered_dicts_parameters_and_typed_tensors(tmp_path: Path, torch_files) -> None:
    call, storage = torch_files.Call, torch_files.Storage("torch.storage.UntypedStorage", "0", 96)
    typed = call(
        "torch._utils._rebuild_tensor_v3",
        storage,
        0,
        call("torch.Size", [24]),
        (1,),
        False,
        None,
        torch_files.Global("torch.float32"),
    )
    parameter = call("torch._utils._rebuild_parameter", torch_files.tensor(COUNT, "0"), True, None)
    state = call("collections.OrderedDict", [["a", typed], ["b", parameter]], state={"_metadata": {"version": 1}})
    result = read(tmp_path, torch_files.archive(state, {"0": COUNT}))
    assert np.array_equal(np.array(result["a"]), COUNT) and np.array_equal(np.array(result["b"]), COUNT)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "posix.system",
        "collections.OrderedDict.fromkeys",
        "torch.load",
    ],
)
def test_callables_are_named_and_not_run(tmp_path: Path, torch_files, name: str) -> None:
    mark = tmp_path / "ran"
    state = {"x": torch_files.tensor(COUNT, "0"), "y": torch_files.Call(name, f"touch {mark}")}
    with pytest.raises(UnsafeCheckpointError, match=f"asks to run {name}".replace(".", r"\.")) as caught:
        read(tmp_path, torch_files.archive(state, {"0": COUNT}))
    assert not mark.exists() and "nothing was run" in str(caught.value)


def test_an_object_whose_reduce_runs_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {mark}",)

    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"x": Evil()}))
    with pytest.raises(UnsafeCheckpointError, match="system"):
        read(tmp_path, archive.getvalue())
    assert not mark.exists()


def test_state_set_on_a_table_cannot_replace_its_methods(tmp_path: Path, torch_files) -> None:
    state = torch_files.Call(
        "collections.OrderedDict", [["x", torch_files.tensor(COUNT, "0")]], state={"values": 3, "items": 3}
    )
    assert list(read(tmp_path, torch_files.archive(state, {"0": COUNT}))) == ["x"]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        pytest.param({"shape": (5, 6)}, "outside its storage", id="too many rows"),
        pytest.param({"shape": (4, 6), "offset": 1}, "outside its storage", id="offset"),
        pytest.param({"shape": (2,), "strides": (24,)}, "outside its storage", id="stride"),
        pytest.param({"shape": (2,), "offset": -1}, "outside its storage", id="negative offset"),
        pytest.param({"shape": (2,), "strides": (-1,), "offset": 4}, "outside its storage", id="negative stride"),
        pytest.param({"shape": (2.0,), "strides": (1,)}, "outside its storage", id="fraction"),
        pytest.param({"shape": (10**9, 24), "strides": (0, 1)}, "repeats its storage", id="expanded"),
        pytest.param({"shape": (2, 2), "strides": (1,)}, "pickle in .* is damaged", id="ranks differ"),
    ],
)
def test_views_outside_their_storage(tmp_path: Path, torch_files, view: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, torch_files.archive({"x": torch_files.tensor(COUNT, "0", **view)}, {"0": COUNT}))


def test_unusable_archives(tmp_path: Path, torch_files) -> None:
    state = {"x": torch_files.tensor(COUNT, "0")}
    cases = {
        "lacks its entry 'data/0'": torch_files.archive(state, {}),
        "big-endian": torch_files.archive(state, {"0": COUNT}, byteorder=b"big"),
        "TorchScript": torch_files.archive(state, {"0": COUNT}, **{"constants.pkl": b""}),
        "before 1.6": LEGACY_MAGIC + b"more",
        "cut short or damaged": b"not a zip file",
        "no state dict": torch_files.archive({"epoch": 3}, {}),
        "holds no state dict": torch_files.archive([1, 2], {}),
        "float8_e4m3fn": torch_files.archive({"x": torch_files.Global("torch.float8_e4m3fn")}, {}),
        "not a storage": torch_files.archive({"x": torch_files.Storage("torch.FloatStorage", "0", "many")}, {}),
        "without a storage": torch_files.archive(torch_files.Call("torch._utils._rebuild_tensor", 1, 2, (), ()), {}),
    }
    for message, data in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path, data)


def test_archives_that_are_not_pytorch_or_are_compressed(tmp_path: Path) -> None:
    for names, method, message in (
        (["readme.txt"], zipfile.ZIP_STORED, "no data.pkl"),
        (["a/data.pkl"], zipfile.ZIP_DEFLATED, "compressed"),
    ):
        archive = BytesIO()
        with zipfile.ZipFile(archive, "w", method) as file:
            for name in names:
                file.writestr(name, pickle.dumps({}))
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path, archive.getvalue())


def test_files_cut_anywhere(tmp_path: Path, torch_files) -> None:
    data = torch_files.save({"x": COUNT, "y": COUNT})
    for length in range(0, len(data), 7):
        with pytest.raises(CheckpointError):
            read(tmp_path, data[:length])


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, torch_files) -> None:
    data = bytearray(torch_files.save({"x": COUNT}))
    for position in range(0, len(data), 5):
        damaged = bytes([*data[:position], data[position] ^ 0x5A, *data[position + 1 :]])
        try:
            read(tmp_path, damaged)
        except CheckpointError as error:
            assert "\n" not in str(error)
