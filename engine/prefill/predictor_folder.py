"""A KV predictor on disk: a folder with predictor.json and predictor.safetensors, read without trust."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np

from russet.engine.errors import CheckpointError, InvalidOptionError, OutputExistsError, PredictorError
from russet.engine.prefill.identity import SAMPLE_TOKENS, Identity
from russet.engine.prefill.predictor import Inputs, Predictor
from russet.engine.storage import require_space, writing
from russet.models.catalog import PREDICTORS
from russet.models.safetensors_file import SafetensorsFile, open_safetensors
from russet.models.shipped import shipped

FORMAT = "russet-kv-predictor"
VERSION = 3
READABLE = (2, VERSION)
"""Version 2 had maps in floating point only."""
DESCRIPTION = "predictor.json"
TENSORS = "predictor.safetensors"
OWN = "auxiliary."
MAP_BITS, OWN_BITS, GROUP = 8, 6, 64
"""Rounding to 6 bits costs maps ten times what it costs layers of an auxiliary's own: KL 0.006 and 0.0005 from the
unrounded ones, SmolLM2-135M on 12 rows of SQuAD."""
MAX_DESCRIPTION_BYTES = 1_000_000
MAX_LAYERS = 10_000
MAX_SIZE = 10_000_000

_NAME = re.compile(r"[\w-][\w.-]{0,199}")
_SAMPLES = ("embedding", "values")
_FLOATS = ("F32", "F16", "BF16")


def find_predictor(name: Path | str) -> Path:
    """The folder of a predictor, or of one that the catalog lists by this name; raises InvalidOptionError."""
    if not isinstance(name, Path | str):
        raise InvalidOptionError(f"The predictor is of type {type(name).__name__}; give its folder or its name.")
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    if str(name) not in PREDICTORS:
        raise InvalidOptionError(
            f"There is no predictor {name}: give the folder of one, or a name such as {next(iter(PREDICTORS))}."
        )
    found = shipped(str(name))
    if found is None:
        raise InvalidOptionError(
            f"The predictor {name} comes with a clone of the repository, which this installation is not; give the "
            "folder of one."
        )
    return found


def save_predictor(predictor: Predictor, folder: Path, packed: bool = False) -> None:
    """Write a predictor to a folder that does not exist yet, whole or not at all; `packed` rounds its maps to 8 bits.

    Raises `OutputExistsError`, `StorageError`, and `PredictorError` where the auxiliary's name is not a plain one.
    """
    if folder.exists():
        raise OutputExistsError(f"{folder} exists already; give the predictor a folder of its own.")
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    with writing(folder):
        try:
            partial.mkdir(parents=True)
            write_predictor(predictor, partial, packed)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_predictor(predictor: Predictor, folder: Path, packed: bool = False) -> None:
    """Fill an empty folder; arguments and errors are those of `save_predictor`."""
    described: dict[str, Any] = {"format": FORMAT, "version": VERSION, "base": _describe(predictor.base)}
    own = {f"{OWN}{name}.weight": array for name, array in predictor.own.items()}
    maps = _packed(predictor.weights, MAP_BITS) if packed else predictor.weights
    arrays = {**maps, **_samples("base", predictor.base), **_packed(own, OWN_BITS)}
    if isinstance(predictor.auxiliary, Identity):
        _check_name(predictor.auxiliary.name)
        described["auxiliary"] = _describe(predictor.auxiliary)
        arrays.update(_samples("auxiliary", predictor.auxiliary))
    else:
        described["auxiliary"] = {"layers": list(predictor.auxiliary)}
    described |= {
        "layer_map": list(predictor.layer_map),
        "unmapped": list(predictor.unmapped),
        "inputs": predictor.inputs,
    }
    with writing(folder):
        require_space(folder, sum(array.nbytes for array in arrays.values()))
        contiguous = {name: mx.contiguous(array) for name, array in sorted(arrays.items())}
        mx.save_safetensors(str(folder / TENSORS), contiguous, {"format": FORMAT})
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_predictor(folder: Path) -> Predictor:
    """The predictor in a folder; `PredictorError` says what is wrong with one that cannot be used."""
    described = _read_description(folder / DESCRIPTION)
    try:
        file = open_safetensors(folder / TENSORS)
        base = _identity(file, "base", described.get("base"))
        auxiliary = _auxiliary(file, described.get("auxiliary"))
        weights = _expanded(file, "layers.")
        own = {n[len(OWN) :].removesuffix(".weight"): array for n, array in _expanded(file, OWN, ".weight").items()}
        layers, unmapped = _layer_map(described.get("layer_map")), _unmapped(described.get("unmapped"))
        return Predictor(base, auxiliary, layers, weights, _inputs(described.get("inputs")), unmapped, own)
    except CheckpointError as error:
        raise PredictorError(f"The predictor in {folder} cannot be used: {error}") from error


def _read_description(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_DESCRIPTION_BYTES + 1)
        described = json.loads(text) if len(text) <= MAX_DESCRIPTION_BYTES else None
    except FileNotFoundError:
        raise PredictorError(f"{path.parent} has no {DESCRIPTION}, so it is not a predictor's folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PredictorError(f"{path} could not be read ({error}); make or fetch the predictor again.") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise PredictorError(f"{path} does not describe a KV predictor; its format should be {FORMAT!r}.")
    if described.get("version") not in READABLE:
        raise PredictorError(
            f"{path} has version {described.get('version')!r} and this Russet reads {READABLE[0]} and {VERSION}; use "
            "the Russet that made it, or make it again."
        )
    return described


def _describe(identity: Identity) -> dict[str, Any]:
    return {
        "name": identity.name,
        "hidden_dim": identity.hidden_dim,
        "vocab_size": identity.vocab_size,
        "keys_values": [list(entry) if entry else None for entry in identity.keys_values],
    }


def _samples(role: str, identity: Identity) -> dict[str, mx.array]:
    return {f"{role}.{part}": mx.array(array) for part, array in zip(_SAMPLES, identity.sample, strict=True)}


def _packed(arrays: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    """Arrays as they are stored: matrices in a few bits where groups fit, all else in float16."""
    stored: dict[str, mx.array] = {}
    for name, array in arrays.items():
        half = array.astype(mx.float16)
        if array.ndim == 2 and array.shape[1] % GROUP == 0:
            parts = zip(("weight", "scales", "biases"), mx.quantize(half, GROUP, bits), strict=True)
            stored |= {f"{name.removesuffix('.weight')}.{part}": packed for part, packed in parts}
        else:
            stored[name] = half
    return stored


def _expanded(file: SafetensorsFile, prefix: str, suffix: str = "") -> dict[str, mx.array]:
    """Arrays whose names begin and end so, expanded where they are packed; their shapes are compared elsewhere."""
    arrays: dict[str, mx.array] = {}
    for name in file.tensors:
        if not (name.startswith(prefix) and name.endswith(suffix)) or name.endswith((".scales", ".biases")):
            continue
        base = name.removesuffix(".weight")
        if base == name or f"{base}.scales" not in file.tensors:
            arrays[name] = _tensor(file, name)
            continue
        scales, offsets = _tensor(file, f"{base}.scales"), _tensor(file, f"{base}.biases")
        stored = file.tensors[name]
        bits = _bits(stored.shape, scales.shape)
        if stored.dtype != "U32" or bits not in (OWN_BITS, MAP_BITS) or scales.shape != offsets.shape:
            raise PredictorError(
                f"{name} is not weights of {OWN_BITS} or {MAP_BITS} bits in groups of {GROUP}; it is damaged."
            )
        arrays[name] = mx.dequantize(file.read(name), scales, offsets, GROUP, bits)
    return arrays


def _bits(words: tuple[int, ...], scales: tuple[int, ...]) -> int | None:
    """Of a packed matrix, by the shapes of its words and its scales; None where these are none of one."""
    if len(words) != 2 or len(scales) != 2 or words[0] != scales[0] or not scales[1]:
        return None
    bits, rest = divmod(32 * words[1], GROUP * scales[1])
    return None if rest else bits


def _auxiliary(file: SafetensorsFile, entry: Any) -> Identity | tuple[int, ...]:
    if not isinstance(entry, dict) or "layers" not in entry:
        identity = _identity(file, "auxiliary", entry)
        _check_name(identity.name)
        return identity
    layers = entry["layers"]
    if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS or not all(_whole(n) for n in layers):
        raise PredictorError("The auxiliary's layers in predictor.json are not a list of numbers; it is damaged.")
    return tuple(layers)


def _identity(file: SafetensorsFile, role: str, entry: Any) -> Identity:
    try:
        name, hidden, vocab = entry["name"], entry["hidden_dim"], entry["vocab_size"]
        sizes = [None if pair is None else (pair[0], pair[1]) for pair in entry["keys_values"]]
        numbers = [hidden, vocab, *(n for pair in sizes if pair for n in pair)]
        if not isinstance(name, str) or len(sizes) > MAX_LAYERS or not all(_whole(n) and n > 0 for n in numbers):
            raise TypeError
    except (TypeError, KeyError, IndexError):
        raise PredictorError(
            f"The entry {role!r} of predictor.json has not the name and sizes of a model; it is damaged."
        ) from None
    embedding, values = (np.array(_tensor(file, f"{role}.{part}").astype(mx.float32)) for part in _SAMPLES)
    widths = [pair[0] * pair[1] for pair in sizes if pair]
    if embedding.shape != (SAMPLE_TOKENS, hidden) or not widths or values.shape != (SAMPLE_TOKENS, widths[-1]):
        raise PredictorError(f"The weight sample of {role!r} has not the sizes in predictor.json; it is damaged.")
    return Identity(name, hidden, vocab, tuple(sizes), (embedding, values))


def _layer_map(entry: Any) -> tuple[int | None, ...]:
    if not isinstance(entry, list) or not all(n is None or _whole(n) for n in entry):
        raise PredictorError("The layer map in predictor.json is not a list of layers; it is damaged.")
    return tuple(entry)


def _unmapped(entry: Any) -> tuple[int, ...]:
    if not isinstance(entry, list) or not all(_whole(n) for n in entry):
        raise PredictorError("The unmapped layers in predictor.json are not a list of layers; it is damaged.")
    return tuple(entry)


def _inputs(entry: Any) -> Inputs:
    if entry not in get_args(Inputs):
        raise PredictorError(
            f"The predictor's maps read {entry!r}; this Russet knows {' and '.join(get_args(Inputs))}; use the one "
            "that made it."
        )
    return entry


def _tensor(file: SafetensorsFile, name: str) -> mx.array:
    """A floating-point tensor without holes in its numbers."""
    if name not in file.tensors:
        raise PredictorError(f"{file.path.name} has no tensor {name}; make or fetch the predictor again.")
    kind = file.tensors[name].dtype
    if kind not in _FLOATS:
        raise PredictorError(f"{name} in {file.path.name} is {kind}; {', '.join(_FLOATS)} are what a predictor has.")
    array = file.read(name)
    if not mx.isfinite(array).all().item():
        raise PredictorError(f"{name} in {file.path.name} holds values that are not finite; train it again.")
    return array


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise PredictorError(
            f"The auxiliary is named {name!r}; it must be a catalog name or a folder inside the predictor's."
        )
