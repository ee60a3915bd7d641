"""Apple's tamm on the CPU: the reference for afm (AFMTextV7 with key and value quantisers), shrunk.

The golden folder has the weights twice: `tamm.safetensors` in tamm's own naming, which is what this file loads, and
`model.safetensors` in the naming of mlx-lm's afm7, which engines load. `renamed` ties them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tamm.ao.arch_optimizers import KVQuantArchOptimizer
from tamm.ao.layers import FakeQuantize
from tamm.ao.layers.fake_quantize import FakeQuantizeObserverMode
from tamm.layers.transformer.kv_cache import VanillaKVCache
from tamm.models.afm_text import AFMTextV7
from variants import Config

TIE_MARGIN = 2e-4
"""The least distance from a rounding tie, in steps of the int8 grid, that a golden's keys and values must keep.

Nearer than that, the last bit of a float32 sum decides the rounding, and two right implementations may differ.
"""

AFM7_NAMES = {
    "attention.norm": "input_layernorm",
    "attention.qkv_transform.fused_linear": "self_attn.qkv_proj",
    "attention.q_transform": "self_attn.q_proj",
    "attention.qk_norm.query_norm": "self_attn.q_norm",
    "attention.qk_norm.key_norm": "self_attn.k_norm",
    "attention.q_norm.query_norm": "self_attn.q_norm",
    "attention.output_transform": "self_attn.out_proj",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.hidden_transform.linear_0": "mlp.gate_proj",
    "feed_forward.hidden_transform.linear_1": "mlp.up_proj",
    "feed_forward.output_transform": "mlp.down_proj",
}
_LAYER = re.compile(r"layers\.segment_(\d)\.layer_(\d+)\.(.+)")
_RANGE = re.compile(r"attention\.kv_quantizer\.(key|value)_quantizer\.activation_post_process\.range")


def build(config: Config) -> AFMTextV7:
    """An AFMTextV7 of the configured size with frozen int8 key and value quantisers, in inference mode."""
    model = AFMTextV7.create_basic_builder(
        vocab_size=config["vocab_size"],
        hidden_dim=config["hidden_dim"],
        num_layers=config["num_layers"],
        num_kv_reuse_layers=config["num_kv_reuse_layers"],
        num_heads=config["num_heads"],
        num_kv_heads=config["num_kv_heads"],
        hidden_dim_scale_factor=config["hidden_dim_scale_factor"],
        rope_theta=config["rope_theta"],
        sdpa_implementation="basic",
    ).build()
    optimizer = KVQuantArchOptimizer()
    optimizer.freeze_qparams = True
    optimizer.optimize(model)
    return model.eval()


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Floating-point tensors of tamm's state dict, less the head, which is the embedding."""
    state = build(config).state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if tensor.dtype == torch.float32 and name != "output_transform.weight" and not name.endswith(".range")
    }


def calibrated(config: Config, weights: dict[str, np.ndarray], tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """tamm's whole state dict: the weights, and quantiser ranges a little under what the tokens reach, so some clip."""
    model = build(config)
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    tensors["output_transform.weight"] = tensors["embedding.weight"].clone()
    model.load_state_dict({**model.state_dict(), **tensors})
    for quantizer in _quantizers(model):
        quantizer.observer_mode = FakeQuantizeObserverMode.ENABLED
        quantizer.is_fake_quant_enabled = False
    _forward(model, tokens)
    state = model.state_dict()
    return {name: 0.75 * tensor if name.endswith(".range") else tensor.clone() for name, tensor in state.items()}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors of tamm's state dict as mlx-lm's afm7 names them."""
    tensors = {"model.embedding.weight": state["embedding.weight"].numpy()}
    tensors["model.output_norm.weight"] = state["output_norm.weight"].numpy()
    for name, tensor in state.items():
        if not (layer := _LAYER.fullmatch(name)):
            continue
        segment, index, part = layer.groups()
        prefix = f"model.{'layers' if segment == '0' else 'kv_reuse_layers'}.{index}"
        if scale := _RANGE.fullmatch(part):
            step = torch.max(tensor * torch.tensor([1 / -128, 1 / 127]))  # in float32, as tamm computes it
            tensors[f"{prefix}.self_attn.quant_{scale[1]}_scale"] = step.numpy()
        elif not part.endswith(".num_samples"):
            stem, _, kind = part.rpartition(".")
            tensors[f"{prefix}.{AFM7_NAMES[stem]}.{kind}"] = tensor.numpy()
    return tensors


class Model:
    """A committed folder in the reference implementation; `load_state_dict` refuses missing and left-over tensors."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._config = config
        self._model = build(config)
        state = load_file(folder / "tamm.safetensors")
        self._model.load_state_dict(state)
        committed = load_file(folder / "model.safetensors")
        expected = renamed(state)
        if committed.keys() != expected.keys() or any(
            not np.array_equal(committed[name].numpy(), values) for name, values in expected.items()
        ):
            raise ValueError(f"{folder}: model.safetensors and tamm.safetensors hold different weights")

    def logits(self, tokens: np.ndarray, step: int) -> np.ndarray:
        """float32 [len(tokens), vocab], fed `step` tokens at a time through the reference's own cache."""
        margins: list[float] = []
        hooks = [q.register_forward_pre_hook(_margin_hook(margins)) for q in _quantizers(self._model)]
        logits = _forward(self._model, tokens, step, self._cache(len(tokens)))
        for hook in hooks:
            hook.remove()
        if min(margins) < TIE_MARGIN:
            raise ValueError(f"a key or value is {min(margins):.1e} of a step from a rounding tie: use another seed")
        return logits

    def _cache(self, length: int) -> VanillaKVCache:
        config = self._config
        rows = config["hidden_dim"] // config["num_heads"] * config["num_kv_heads"]
        owners = config["num_layers"] - config["num_kv_reuse_layers"]
        return VanillaKVCache(owners, 1, length, rows, dtype=torch.float32)


def _forward(
    model: AFMTextV7, tokens: np.ndarray, step: int | None = None, cache: VanillaKVCache | None = None
) -> np.ndarray:
    pieces, step = [], step or len(tokens)
    with torch.no_grad():
        for start in range(0, len(tokens), step):
            ids = torch.from_numpy(tokens[start : start + step].astype(np.int64))[None]
            view = None if cache is None else cache.up_to_index(min(start + step, len(tokens)))
            pieces.append(model(ids, kv_cache=view).logits[0].numpy())
    return np.concatenate(pieces)


def _quantizers(model: AFMTextV7) -> list[FakeQuantize]:
    return [module for module in model.modules() if isinstance(module, FakeQuantize)]


def _margin_hook(margins: list[float]) -> Callable[[Any, tuple[torch.Tensor]], None]:
    def measure(quantizer: Any, inputs: tuple[torch.Tensor]) -> None:
        scale, _ = quantizer.activation_post_process.calculate_qparams()
        steps = inputs[0] / scale
        inside = steps[(steps > -128.5) & (steps < 127.5)]
        margins.append(float((inside - inside.floor() - 0.5).abs().min()))

    return measure
