"""Convert a checkpoint of any known kind into an MLX model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.converters import corenet, tamm
from russet.converters.base import Source
from russet.converters.expected import check_source, decoder_config
from russet.converters.gguf_file import MAGIC as GGUF_MAGIC
from russet.converters.hf import open_hf, read_safetensors
from russet.converters.layout import MAX_SHARD_BYTES, Plan, Planned, make_plan
from russet.converters.quantize import Recipe, Rule
from russet.converters.torch_file import read_torch_file
from russet.converters.verify import check_forward, verify_folder
from russet.converters.writer import refuse_existing, staged_folder, write_folder
from russet.engine.errors import CheckpointError, UnsupportedModelError
from russet.engine.progress import SilentProgress
from russet.models.config_file import read_config

if TYPE_CHECKING:
    from russet.engine.progress import Progress

COARSE = 0.25
"""Relative error of weights above which rounding alone ruins a model: 4 bits make about 0.09, 2 bits 0.4."""

WEIGHT_FILES = ("*.gguf", "*.pt", "*.pth", "*.bin", "*.safetensors")


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with `dry_run` would do. Sizes are in bytes.

    `errors` is the relative RMS error of each class of tensors against the source; `forward` says whether the result
    was run as well, which is left out for models too large to hold beside the conversion.
    """

    source: Path
    kind: str
    family: str
    dst: Path
    dtype: str
    tensors: int
    parameters: int
    bytes_in: int
    bytes_out: int
    bits_per_weight: float
    dry_run: bool
    forward: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    plan: tuple[Planned, ...] = field(default=(), repr=False)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    rules: Sequence[Rule] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Report:
    """Convert the checkpoint at `src` into the new model folder `dst`; nothing is left there when it fails.

    `bits` is 16, 8, 4, 2, or None to keep what the checkpoint has: 16-bit and float32 weights as they are, GGUF blocks
    bit for bit where MLX has their layout, all else in 16 bits. Raises CheckpointError, UnsafeCheckpointError,
    UnsupportedModelError, WeightsError, TokenizerError, OutputExistsError, StorageError or InvalidOptionError.
    """
    src, dst = Path(src), Path(dst)
    recipe = Recipe(bits, group_size, dtype, tuple(rules))
    if not dry_run:
        refuse_existing(dst)
    source = open_source(src)
    check_source(source)
    plan = make_plan(source, recipe, max_shard_bytes)
    notes = [*source.notes, *_target_notes(plan), *_rule_notes(recipe, source)]
    if not any(name in plan.files for name in ("tokenizer.json", "tokenizer.model")):
        notes.append(f"no tokenizer was found beside {src.name}: put its tokenizer.model or tokenizer.json into {dst}")
    errors: dict[str, float] = {}
    forward = False
    if not dry_run:
        with staged_folder(dst, plan.nbytes) as folder:
            errors = _write_and_verify(folder, plan, progress or SilentProgress())
            notes += _error_notes(errors)
            forward = _parameters(source) * 4 <= max_shard_bytes
            if forward:
                check_forward(folder)
    return _report(src, dst, source, plan, dry_run=dry_run, forward=forward, errors=errors, notes=tuple(notes))


def open_source(src: Path) -> Source:
    """Recognise the kind of a checkpoint and open it.

    Raises CheckpointError when there is none at `src`, or several that are not one model.
    """
    if src.is_dir():
        if (src / "config.json").exists():
            config = read_config(src)
            decoder_config(config)
            return open_hf(src, config)
        src = _only_weight_file(src)
    if not src.is_file():
        raise CheckpointError(f"{src} does not exist; give a model folder or a checkpoint file.")
    try:
        with src.open("rb") as file:
            start = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{src} could not be read ({error.strerror}).") from error
    if start == GGUF_MAGIC or src.suffix == ".gguf":
        from russet.converters.gguf import open_gguf

        return open_gguf(src)
    tensors = read_safetensors(src) if src.suffix == ".safetensors" else read_torch_file(src)
    names = {tensor.name for tensor in tensors}
    for converter in (corenet, tamm):
        if converter.recognises(names):
            return converter.open_corenet(src, tensors) if converter is corenet else tamm.open_tamm(src, tensors)
    raise UnsupportedModelError(
        f"{src.name} holds neither corenet's OpenELM nor tamm's AFM; for another model, give the folder that has "
        "its config.json."
    )


def _only_weight_file(folder: Path) -> Path:
    found = sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    if not found:
        raise CheckpointError(f"{folder} has no config.json and no checkpoint file; is it a model folder?")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(
            f"{folder} has no config.json but several checkpoints ({names}); name the one to convert."
        )
    return found[0]


def _write_and_verify(folder: Path, plan: Plan, progress: Progress) -> dict[str, float]:
    total = sum(tensor.nbytes for tensor in plan.tensors)
    try:
        progress.start("Converting", total)
        write_folder(folder, plan, progress)
        progress.finish()
        progress.start("Verifying", total)
        return verify_folder(folder, plan, progress)
    finally:
        progress.finish()


def _target_notes(plan: Plan) -> list[str]:
    """One sentence a reason, with how many tensors it concerns."""
    by_reason: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        if tensor.target.note:
            by_reason.setdefault(tensor.target.note, []).append(tensor.source.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {reason}"
        for reason, names in by_reason.items()
    ]


def _error_notes(errors: dict[str, float]) -> list[str]:
    coarse = {name: error for name, error in errors.items() if error > COARSE}
    if not coarse:
        return []
    worst = max(coarse, key=lambda name: coarse[name])
    return [
        f"the {worst} weights are off by {coarse[worst]:.0%}: unless it was trained for so few bits, expect nonsense"
    ]


def _rule_notes(recipe: Recipe, source: Source) -> list[str]:
    return [
        f"the rule {rule.pattern!r} matches no tensor"
        for rule in recipe.rules
        if not any(rule.matches(tensor.name) for tensor in source.tensors)
    ]


def _parameters(source: Source) -> int:
    return sum(tensor.size for tensor in source.tensors)


def _report(src: Path, dst: Path, source: Source, plan: Plan, **rest: Any) -> Report:
    weights = sum(tensor.nbytes for tensor in plan.tensors)
    return Report(
        source=src,
        kind=source.kind,
        family=source.config["model_type"],
        dst=dst,
        dtype=plan.dtype,
        tensors=len(plan.tensors),
        parameters=_parameters(source),
        bytes_in=source.nbytes,
        bytes_out=plan.nbytes,
        bits_per_weight=8 * weights / max(1, _parameters(source)),
        plan=tuple(plan.tensors),
        **rest,
    )
