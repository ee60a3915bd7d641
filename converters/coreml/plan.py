"""What a package will hold before anything is written: how each tensor is stored, its size, and the cut into parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from russet.converters.coreml.weights import BLOCK, PACKED, is_balanced, predicted_bytes
from russet.converters.exporting import CHUNK, CONTEXT, ExportOptions
from russet.converters.model_tensors import ModelTensors
from russet.engine.errors import InvalidOptionError
from russet.models.config import DecoderConfig

MAX_WEIGHT_BYTES = 2_000_000_000
"""The largest weight file of one package."""
MIN_SYSTEM = "ios18"
GRAPH_BYTES = 40_000
"""What a layer's operations take in both functions: 37 kB (Llama), 46 kB (AFM)."""
KEPT = ("affine8", "affine4", "table2", "levels2")
"""The kinds that keep packed weights."""


@dataclass(frozen=True)
class Part:
    """Consecutive layers in one package; the first part has the embedding, the last one norm and head."""

    layers: range
    first: bool
    last: bool
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """An export, decided: `kinds` says by role how a tensor is stored (see weights.py), `groups` the weights
    that share a scale where packed ones are kept (0: a row)."""

    config: DecoderConfig
    weights: str
    context: int
    chunk: int
    system: str
    kinds: dict[str, str]
    groups: dict[str, int]
    sizes: dict[str, int]
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    def lines(self, names: dict[str, str]) -> tuple[tuple[str, str, int, int], ...]:
        """(stock name, kind, tensors, bytes) for the tensors of the same place in every layer."""
        found: dict[tuple[str, str], list[int]] = {}
        for role, kind in self.kinds.items():
            name = re.sub(r"\.\d+\.", ".*.", names.get(role, role))
            entry = found.setdefault((name, kind), [0, 0])
            entry[0] += 1
            entry[1] += self.sizes[role]
        return tuple((name, kind, count, nbytes) for (name, kind), (count, nbytes) in found.items())


@dataclass
class _Notes:
    """What is not as asked for, with the tensors that it concerns."""

    by_reason: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, role: str) -> None:
        self.by_reason.setdefault(reason, []).append(role)

    def sentences(self) -> list[str]:
        return [
            f"{roles[0]}{f' and {len(roles) - 1} more' if len(roles) > 1 else ''} {reason}"
            for reason, roles in self.by_reason.items()
        ]


def make_plan(model: ModelTensors, options: ExportOptions, max_bytes: int = MAX_WEIGHT_BYTES) -> Plan:
    """Decide how `model` is exported; raises InvalidOptionError for options that do not fit it."""
    config = model.config
    context, chunk = _lengths(config, options)
    system = _system(options.system)
    if options.weights == "float32":
        raise InvalidOptionError("Core ML packages hold float16 weights at most; float32 is for --to coreai.")
    notes = _Notes()
    roles = roles_of(config)
    wanted = options.weights
    layouts = {role: layout for role in roles if (layout := model.stored_layout(role))[0]}
    balanced = {role for role, (bits, _) in layouts.items() if bits == 2 and is_balanced(model.stored(role))}
    if wanted is None:
        wanted = "stored" if balanced else "float16"
    if wanted == "stored" and not layouts:
        raise InvalidOptionError(
            f"{model.folder.name} has no packed weights to keep as they are stored; give another --weights."
        )
    kinds, sizes = {}, {}
    for role, shape in roles.items():
        kinds[role] = _kind(model, role, shape, wanted, notes)
        if kinds[role] == "table2" and role in balanced and system == "ios26":
            kinds[role] = "levels2"
        rows = shape[::-1] if kinds[role] in KEPT and model.by_neuron(role) else shape
        sizes[role] = predicted_bytes(kinds[role], rows, layouts.get(role, (None, 0))[1])
    parts = _parts(config, kinds, sizes, max_bytes, options)
    sentences = [*notes.sentences(), *_state_notes(context)]
    groups = {role: layouts[role][1] for role, kind in kinds.items() if kind in KEPT}
    return Plan(config, wanted, context, chunk, system, kinds, groups, sizes, parts, tuple(sentences))


def roles_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the graph multiplies by, with its shape, fused projections taken apart."""
    from russet.models.shapes import expected_shapes

    shapes = expected_shapes(config)
    roles = ["embed", *([] if config.tied_head else ["head"]), "norm"]
    for i, layer in enumerate(config.layers):
        owns = layer.kv_source is None
        parts = ["attn_norm", "q", *(("k", "v") if owns else ()), "o", "ffn_norm", "gate", "up", "down"]
        if config.qk_norm != "none":
            parts += ["q_norm", *(["k_norm"] if owns else [])]
        if config.post_norms:
            parts += ["post_attn_norm", "post_ffn_norm"]
        roles += [f"layers.{i}.{part}" for part in parts]
    return {role: shapes[role] for role in roles}


def _system(named: str | None) -> str:
    """The deployment target: ios18, or ios26 for systems that have it; macOS 15 and 26 are their equals."""
    if named is None:
        return MIN_SYSTEM
    version = int(named.removeprefix("macos").removeprefix("ios"))
    if version < (15 if named.startswith("macos") else 18):
        raise InvalidOptionError(
            f"A package with a state needs iOS 18 or macOS 15; {named!r} is too old: give ios18 or leave it out."
        )
    return "ios26" if version >= 26 else MIN_SYSTEM


def _lengths(config: DecoderConfig, options: ExportOptions) -> tuple[int, int]:
    context = options.context or min(config.max_positions, CONTEXT)
    if context > config.max_positions:
        raise InvalidOptionError(
            f"context is {context}, and the model has {config.max_positions} positions; give at most that."
        )
    if context < 2:
        raise InvalidOptionError(f"context is {context}; a prompt and its reply need at least 2 positions.")
    chunk = options.chunk or min(CHUNK, context)
    if chunk > context:
        raise InvalidOptionError(f"chunk is {chunk}, more than the context of {context}; give at most that.")
    return context, chunk


def _kind(model: ModelTensors, role: str, shape: tuple[int, ...], wanted: str, notes: _Notes) -> str:
    if len(shape) == 1:
        # 1 + gain is no float16 number, so these gains are kept whole and rounded in the graph.
        return "float32" if model.config.unit_offset_norm else "float16"
    stored_bits, _ = model.stored_layout(role)
    if wanted in ("float16", "stored"):
        if not stored_bits:
            return "float16"
        if wanted == "stored" and stored_bits in PACKED and (stored_bits == 2 or not model.by_neuron(role)):
            return PACKED[stored_bits]
        kept = "" if wanted == "stored" else "; --weights stored keeps them as they are"
        notes.add(f"expanded from {stored_bits} bits to float16{kept}", model.names.get(role, role))
        return "float16"
    if role in ("embed", "head"):
        # Tables of tokens suffer most from few bits.
        return "int8"
    if wanted == "int4" and shape[1] % BLOCK:
        notes.add(
            f"stored as int8: rows of {shape[1]} do not divide into blocks of {BLOCK}", model.names.get(role, role)
        )
        return "int8"
    return wanted


def _state_notes(context: int) -> list[str]:
    if context % 32 == 0:
        return []
    return [
        f"the state holds {context} positions, no multiple of 32, with which the Neural Engine is reported to fail "
        "(coremltools issue 2553)"
    ]


def _parts(
    config: DecoderConfig, kinds: dict[str, str], sizes: dict[str, int], max_bytes: int, options: ExportOptions
) -> tuple[Part, ...]:
    """As few packages as hold the layers in order, each with a weight file of at most `max_bytes`."""
    count = len(config.layers)
    layers = [sum(size for role, size in sizes.items() if role.startswith(f"layers.{i}.")) for i in range(count)]
    closing = sizes["norm"] + sizes["embed" if config.tied_head else "head"]
    whole = sizes["embed"] + sum(layers) + closing - (sizes["embed"] if config.tied_head else 0)
    if whole <= max_bytes:
        return (Part(range(count), True, True, whole),)
    if options.layout == "swift":
        raise InvalidOptionError(
            f"The weights take {whole:,} bytes and one package holds {max_bytes:,}, but Swift clients open one; "
            "give --weights int8 or int4, or the engine layout."
        )
    runs = _runs(config)
    filled: list[tuple[range, int]] = []
    start, total = 0, sizes["embed"]
    for run in runs:
        size = sum(layers[i] for i in run) + (closing if run.stop == count else 0)
        if total and run.start > start and total + size > max_bytes:
            filled.append((range(start, run.start), total))
            start, total = run.start, 0
        total += size
        if total > max_bytes:
            _refuse_part(range(start, run.stop), total, max_bytes, shared=len(run) > 1)
    filled.append((range(start, count), total))
    return tuple(Part(run, run.start == 0, run.stop == count, nbytes) for run, nbytes in filled)


def _runs(config: DecoderConfig) -> list[range]:
    """Layers that have to stay together, since those that read another's keys and values share its state."""
    ends = list(range(1, len(config.layers) + 1))
    for i, layer in enumerate(config.layers):
        if layer.kv_source is not None:
            ends = [end for end in ends if not layer.kv_source < end <= i]
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _refuse_part(layers: range, nbytes: int, max_bytes: int, shared: bool) -> None:
    why = "share keys and values" if shared else "cannot be cut further"
    raise InvalidOptionError(
        f"Layers {layers.start} to {layers.stop - 1} {why} and take {nbytes:,} bytes, and one package holds "
        f"{max_bytes:,}; give --weights int8 or int4."
    )


def file_bytes(plan: Plan) -> int:
    """About what the packages take: weights, rotary tables, and `GRAPH_BYTES` a layer."""
    tables = sum(8 * plan.context * rope.dims for rope in {layer.rope for layer in plan.config.layers})
    return sum(part.nbytes + tables for part in plan.parts) + GRAPH_BYTES * len(plan.config.layers)
