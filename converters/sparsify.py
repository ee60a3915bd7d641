"""Make a model folder whose FFNs leave neurons out: down projections by neuron, and thresholds if they are asked for.

Packed down projections are turned to [ffn, hidden] and quantised again with groups along the outputs, since a neuron's
row can only be skipped if it is stored in one piece. Dense ones are turned when the model is loaded, without loss.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from russet.converters.thresholds import calibrate
from russet.converters.writer import refuse_existing, staged_folder
from russet.engine.errors import InvalidOptionError, WeightsError
from russet.engine.storage import writing
from russet.engine.tokenizer import load_tokenizer
from russet.kernels.base import relative_error
from russet.models.config_file import read_config
from russet.models.families import family_of, read_decoder
from russet.models.loading import load_decoder
from russet.models.shards import shards
from russet.models.sparsity import DOWN_KEY, NEURON_MAJOR, THRESHOLDS_KEY, read_sparsity
from russet.models.weights import BALANCED, Weights

DEFAULT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class SparseReport:
    """What was written: thresholds by layer (empty where none were asked for), and how many tensors were turned.

    `error` is the relative RMS error that quantising the turned ones again made.
    """

    dst: Path
    thresholds: tuple[float, ...]
    tokens: int
    turned: int
    error: float


def sparsify(
    src: str | Path, dst: str | Path, *, sparsity: float | None = None, text: str = "", tokens: int = DEFAULT_TOKENS
) -> SparseReport:
    """Write the model folder `dst` from `src`; with `sparsity`, thresholds that cut this share of activations.

    They are calibrated on at most `tokens` tokens of `text`. Files that stay the same are linked where the file system
    can. Raises InvalidOptionError where there is nothing to do or too little text, OutputExistsError, StorageError, and
    what loading a model raises.
    """
    src, dst = Path(src), Path(dst)
    refuse_existing(dst)
    config = read_config(src)
    decoder = read_decoder(config)
    if sparsity is None and any(layer.activation != "relu" for layer in decoder.layers):
        raise InvalidOptionError(
            f"The FFNs of {src} have no ReLU, so none of their neurons are zero: give a sparsity and a text, "
            "for thresholds."
        )
    if decoder.ffn_bias or decoder.post_norms:
        raise InvalidOptionError(
            f"The FFNs of {src} have a bias or a norm behind them, and Russet leaves no neurons out of such: "
            "keep it as it is."
        )
    names = family_of(config).names(decoder)
    roles = [f"layers.{i}.down" for i in range(len(decoder.layers))]
    weights = Weights(src, config, names, decoder)
    for role in roles:
        weights.weight(role, weights.dtype, expand=False)  # looked at, and not read: what is not sound is refused here
    thresholds: list[float] = []
    ids: list[int] = []
    if sparsity is not None:
        ids = load_tokenizer(src).encode_prompt(text)[:tokens]
        thresholds = calibrate(load_decoder(src), ids, sparsity)
        config[THRESHOLDS_KEY] = thresholds
    stored = read_sparsity(config, len(decoder.layers)).neuron_major
    with staged_folder(dst, sum(file.stat().st_size for file in src.iterdir() if file.is_file())) as folder:
        errors = [] if stored else _write_weights(src, folder, [names[role] for role in roles], config)
        if errors:
            config[DOWN_KEY] = NEURON_MAJOR
        _copy_rest(src, folder)
        with writing(folder):
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return SparseReport(dst, tuple(thresholds), len(ids), len(errors), max(errors, default=0.0))


def _write_weights(src: Path, folder: Path, down: list[str], config: Mapping[str, Any]) -> list[float]:
    """Write the shards that hold packed down projections; the error that quantising each of them again made."""
    errors: list[float] = []
    if not config.get("quantization"):
        return errors
    for shard in shards(src):
        tensors = mx.load(str(shard))
        assert isinstance(tensors, dict)
        found = [name for name in down if f"{name}.scales" in tensors]
        for name in found:
            errors.append(_turn(tensors, name, config["quantization"]))
        if found:
            with writing(folder):
                mx.save_safetensors(str(folder / shard.name), tensors, metadata={"format": "mlx"})
    if errors and len(errors) < len(down):
        raise InvalidOptionError(
            f"Some down projections of {src} are packed and some are not: convert it again, with all of them alike."
        )
    return errors


def _turn(tensors: dict[str, mx.array], name: str, quantization: Mapping[str, Any]) -> float:
    """Replace one packed matrix by its transpose, quantised again; the relative error that this made."""
    own = quantization.get(name)
    layout = own if isinstance(own, dict) else quantization
    if layout.get("mode") == BALANCED:
        raise InvalidOptionError(
            f"{name} was trained for 2 bits with groups along its inputs, and rounding it again would ruin it: "
            "train it from a ReLU model, whose down projections are written by neuron."
        )
    keys = [f"{name}.{part}" for part in ("weight", "scales", "biases")]
    weight, scales, biases = (tensors[key] for key in keys)
    dense = mx.dequantize(weight, scales, biases, layout["group_size"], layout["bits"]).T
    if dense.shape[1] % layout["group_size"]:
        raise InvalidOptionError(
            f"The outputs of {name}, {dense.shape[1]}, do not divide into groups of {layout['group_size']}: "
            "convert the model with smaller groups."
        )
    weight, scales, biases = mx.quantize(mx.contiguous(dense), layout["group_size"], layout["bits"])
    tensors.update(zip(keys, (weight, scales, biases), strict=True))
    back = mx.dequantize(weight, scales, biases, layout["group_size"], layout["bits"])
    error = relative_error(back, dense)
    if not math.isfinite(error):
        raise WeightsError(f"{name} holds values that are not finite; the model is damaged, fetch or convert it anew.")
    return error


def _copy_rest(src: Path, folder: Path) -> None:
    for file in src.iterdir():
        target = folder / file.name
        if file.name == "config.json" or target.exists() or not file.is_file():
            continue
        with writing(folder):
            try:
                os.link(file.resolve(), target)
            except OSError:
                shutil.copyfile(file, target)
