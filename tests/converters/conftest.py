"""Tiny checkpoints of every kind, made on the spot: nothing is fetched, and PyTorch is not needed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def stock_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensors of a Llama-like model, written down independently of the code under test."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (q, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, q),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (ffn, hidden),
            f"{layer}mlp.up_proj.weight": (ffn, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, ffn),
        }
        if config["model_type"] in ("qwen3", "gemma3_text"):
            shapes |= {f"{layer}self_attn.{part}_norm.weight": (size,) for part in "qk"}
        if config["model_type"] == "qwen2":
            shapes |= {f"{layer}self_attn.{part}_proj.bias": (n,) for part, n in (("q", q), ("k", kv), ("v", kv))}
        if config.get("attention_bias"):
            shapes |= {
                f"{layer}self_attn.{part}_proj.bias": (n,)
                for part, n in (("q", q), ("k", kv), ("v", kv), ("o", hidden))
            }
        if config["model_type"] == "gemma3_text":
            shapes |= {f"{layer}{side}_feedforward_layernorm.weight": (hidden,) for side in ("pre", "post")}
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights of a sensible size; norms near 1."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: w + 1 if "norm" in name else w for name, w in weights.items()}


@pytest.fixture
def llama_config() -> dict[str, Any]:
    return dict(LLAMA)


@pytest.fixture
def shapes_of() -> Callable[..., dict[str, tuple[int, ...]]]:
    return stock_shapes


@pytest.fixture
def weights_of() -> Callable[..., dict[str, np.ndarray]]:
    return random_weights


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder: `hf_folder(config, weights, name="src", dtype=mx.float32, shards=1)`."""

    def write(
        config: dict[str, Any],
        weights: dict[str, np.ndarray] | None = None,
        name: str = "src",
        dtype: mx.Dtype = mx.float32,
        shards: int = 1,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text("{}")
        arrays = {
            key: mx.array(value).astype(dtype)
            for key, value in (weights or random_weights(stock_shapes(config))).items()
        }
        if shards == 1:
            mx.save_safetensors(str(folder / "model.safetensors"), arrays)
            return folder
        weight_map = {key: f"part-{i % shards}.safetensors" for i, key in enumerate(arrays)}
        for file in set(weight_map.values()):
            part = {key: arrays[key] for key, where in weight_map.items() if where == file}
            mx.save_safetensors(str(folder / file), part)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return write


class Global:
    """A name that a pickle asks for."""

    def __init__(self, name: str) -> None:
        self.module, _, self.name = name.rpartition(".")


class Call:
    """A call that a pickle asks for; `state` is what it would set on the result."""

    def __init__(self, function: str, *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = Global(function), args, state


class Storage:
    """A stored array, referred to the way torch.save does it."""

    def __init__(self, kind: str, key: str, length: int) -> None:
        self.id = ("storage", Global(kind), key, "cpu", length)


class Pickler(pickle._Pickler):
    """Writes `Global`, `Call` and `Storage` as the opcodes that torch.save writes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Storage) else None

    def save_global_name(self, obj: Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj: Call) -> None:
        self.save(obj.function)
        self.save(obj.args)
        self.write(pickle.REDUCE)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    dispatch[Global] = save_global_name
    dispatch[Call] = save_call


STORAGES = {"<f4": "Float", "<f2": "Half", "<f8": "Double", "<i8": "Long", "|b1": "Bool", "|u1": "Byte"}


def tensor(
    array: np.ndarray,
    key: str,
    shape: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    kind: str | None = None,
) -> Call:
    """A tensor over the storage `key` that holds `array` row by row."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Storage(f"torch.{kind or STORAGES[array.dtype.str]}Storage", key, array.size)
    hooks = Call("collections.OrderedDict")
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, hooks)


def torch_bytes(state: Any, storages: dict[str, np.ndarray], **extra: bytes) -> bytes:
    """A PyTorch zip archive whose pickle is `state`."""
    text, archive = BytesIO(), BytesIO()
    Pickler(text, protocol=2).dump(state)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", text.getvalue())
        file.writestr("archive/byteorder", extra.pop("byteorder", b"little"))
        for key, array in storages.items():
            file.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
        for name, data in extra.items():
            file.writestr(f"archive/{name}", data)
        file.writestr("archive/version", b"3\n")
    return archive.getvalue()


def state_bytes(weights: dict[str, np.ndarray]) -> bytes:
    """torch.save(weights)."""
    storages = {str(i): array for i, array in enumerate(weights.values())}
    state = {name: tensor(array, str(i)) for i, (name, array) in enumerate(weights.items())}
    return torch_bytes(state, storages)


class TorchFiles:
    """What tests use to write PyTorch files."""

    Global, Call, Storage = Global, Call, Storage
    tensor = staticmethod(tensor)
    archive = staticmethod(torch_bytes)
    save = staticmethod(state_bytes)


@pytest.fixture
def torch_files() -> type[TorchFiles]:
    return TorchFiles
