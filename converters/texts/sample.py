"""`russet sample` in Python: text out of the model itself, and lookup text, as a folder that recipes train on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np

from russet.converters.recipes.corpus import DESCRIPTION, HELD_OUT
from russet.converters.recipes.source import Source, open_source
from russet.converters.recipes.text import ENDS, HELD_OUT_EVERY, token_folder
from russet.converters.texts.diversity import PIECE, before_loop, distinct
from russet.converters.texts.lockstep import Lanes, make_draw
from russet.converters.texts.lookup import Lookup
from russet.converters.texts.openings import Openings, kinds_of
from russet.converters.texts.passages import Passages
from russet.converters.writer import refuse_existing, staged_folder
from russet.engine.chat_template import ChatTemplate
from russet.engine.device import memory_bytes, on_gpu
from russet.engine.errors import (
    ChatTemplateError,
    InsufficientMemoryError,
    InvalidOptionError,
    TokenizerError,
    TrainingDataError,
)
from russet.engine.storage import readable_bytes, writing
from russet.engine.timing import now
from russet.engine.tokenizer import load_tokenizer

LOOKUP = "lookup"
SHARD = 15_000_000
"""Ids of a shard at most."""

FEWEST_TOKENS = 16
"""Of a row, also of one that was cut when the time was over."""

FEWEST_KEPT = 0.05
"""A model that says less before it goes round in circles has nothing to say at this temperature."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """How much text of which kind. `chat` and `lookup` are shares of the tokens, the rest is plain text.

    `batch` rows of `length` tokens are sampled at once. With `seconds`, sampling ends when they are over.
    Raises InvalidOptionError for a value outside its range.
    """

    tokens: int
    batch: int = 64
    length: int = 1024
    seed: int = 0
    chat: float = 0.5
    lookup: float = 0.0
    temperature: float = 1.0
    min_p: float = 0.01
    seconds: float = math.inf
    systems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.length < FEWEST_TOKENS:
            raise InvalidOptionError(f"length is {self.length}; rows of at least {FEWEST_TOKENS} tokens are expected.")
        if min(self.chat, self.lookup) < 0 or self.chat + self.lookup > 1:
            raise InvalidOptionError(
                f"chat is {self.chat} and lookup {self.lookup}; shares of 0 or more are expected that add up to at "
                "most 1."
            )


@dataclass(slots=True)
class SampleReport:
    """What was written, by kind: tokens, and how many different 4-grams there are among all.

    Of `rows` that were sampled, `cut` ones end where they began to go round in circles, and `dropped` ones did so soon.
    """

    source: str
    tokens: dict[str, int] = field(default_factory=dict)
    distinct: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    cut: int = 0
    dropped: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0


Advance = Callable[[int], None]
"""Hears of so many tokens more."""


def sample_text(
    src: Path, dst: Path, settings: SampleSettings, passages: Path | None = None, advance: Advance | None = None
) -> SampleReport:
    """Write the folder `dst`: a shard or more of each kind, `val.bin`, `corpus.json`; it appears at the end, complete.

    Lookup text is made of `passages`, text or shards as recipes take them. Raises OutputExistsError, StorageError,
    InvalidOptionError, ChatTemplateError, TokenizerError, TrainingDataError, InsufficientMemoryError, and what opening
    a model raises.
    """
    refuse_existing(dst)
    if settings.lookup and passages is None:
        raise InvalidOptionError("Lookup text is made of passages; say with --passages where text is.")
    source, tokenizer = open_source(src), load_tokenizer(src)
    end = next((token for name in ENDS if (token := tokenizer.token_id(name)) is not None), None)
    if end is None:
        raise TokenizerError(f"{src} has none of the end-of-text tokens {', '.join(ENDS)}; use another model.")
    template = ChatTemplate.load(src, tokenizer)
    if settings.chat and template is None:
        raise ChatTemplateError(f"{src} has no chat template, so it cannot write chats; pass --chat 0.")
    advance = advance or (lambda tokens: None)
    windows = math.ceil(settings.tokens / settings.length)
    looked_up = round(windows * settings.lookup)
    rows: dict[str, list[np.ndarray]] = {}
    report = SampleReport(src.name)
    if windows > looked_up:
        openings = Openings(tokenizer, template, (None, *settings.systems), source.config.vocab_size)
        _Sampling(source, openings, settings, end).fill(rows, (windows - looked_up) * settings.length, report, advance)
    if passages is not None and looked_up:
        found = Passages(token_folder(passages, src), tokenizer, end)
        lookup = Lookup(found, tokenizer, template, end, settings.length)
        rows[LOOKUP] = []
        for i in range(looked_up):
            rows[LOOKUP].append(lookup.window(np.random.default_rng([settings.seed, i])))
            advance(settings.length)
    report.tokens = {kind: sum(map(len, found)) for kind, found in rows.items()}
    report.distinct = {kind: distinct(found) for kind, found in rows.items()}
    _write(dst, rows, src, end, source.config.vocab_size, settings)
    return report


class _Sampling:
    """Rounds of rows from the model until there are enough tokens before loops, or the time is over."""

    def __init__(self, source: Source, openings: Openings, settings: SampleSettings, end: int) -> None:
        self._source, self._openings, self._settings, self._end = source, openings, settings, end
        self._share = settings.chat / (1 - settings.lookup)
        _refuse_oversize(source, settings)

    def fill(self, rows: dict[str, list[np.ndarray]], wanted: int, report: SampleReport, advance: Advance) -> None:
        settings = self._settings
        batch = min(settings.batch, math.ceil(wanted / settings.length))
        draw = make_draw(self._source.config.vocab_size, self._openings.special, settings.temperature, settings.min_p)
        dtype = self._source.dtype if on_gpu() else mx.float32
        lanes = Lanes(self._source, batch, settings.length, draw, dtype, min(batch, 2 if on_gpu() else 1))
        kinds, begun = kinds_of(batch, self._share), now()
        kept = number = tokens = 0

        def going(position: int) -> bool:
            advance(batch)
            return now() - begun < settings.seconds

        while kept < wanted:
            rng = np.random.default_rng([settings.seed, number])
            plan = self._openings.plan(kinds, settings.length, self._end, rng)
            sampled = lanes.round(plan, (settings.seed << 20) + number, going)
            sampled[:, -1] = self._end
            number, report.rows, report.seconds = number + 1, report.rows + batch, now() - begun
            tokens += sampled.size
            report.tokens_per_second = tokens / report.seconds
            late = report.seconds >= settings.seconds
            if late and sampled.shape[1] < FEWEST_TOKENS:
                break
            for kind, row in zip(kinds, sampled, strict=True):
                part = self._before_loop(row, report)
                if len(part) and kept < wanted:
                    rows.setdefault(kind, []).append(part)
                    kept += len(part)
            if kept < FEWEST_KEPT * tokens:
                raise TrainingDataError(
                    f"Of {tokens:,} tokens that {report.source} wrote {kept:,} came before it went round in circles; "
                    "raise the temperature, lower min-p, or use another model."
                )
            if late:
                break
        if not kept:
            raise InvalidOptionError(f"In {settings.seconds} seconds no text was done; give more, or lower --batch.")

    def _before_loop(self, row: np.ndarray, report: SampleReport) -> np.ndarray:
        """A row as far as it is worth something, with the end-of-text token last."""
        count = before_loop(row)
        if count == len(row):
            return row
        if count < PIECE:
            report.dropped += 1
            return row[:0]
        report.cut += 1
        row[count - 1] = self._end
        return row[:count]


def _refuse_oversize(source: Source, settings: SampleSettings) -> None:
    dtype = source.dtype if on_gpu() else mx.float32
    layers = [layer for layer in source.config.layers if layer.kv_source is None]
    per_token = sum(2 * layer.kv_heads * layer.head_dim * dtype.size for layer in layers)
    needed = settings.batch * (settings.length * per_token + 16 * source.config.vocab_size)
    if needed > 0.9 * memory_bytes():
        raise InsufficientMemoryError(
            f"{settings.batch} rows of {settings.length} tokens take about {readable_bytes(needed)}, and there are "
            f"{readable_bytes(memory_bytes())}; lower --batch."
        )


def _write(
    dst: Path,
    rows: dict[str, list[np.ndarray]],
    src: Path,
    end: int,
    vocab_size: int,
    settings: SampleSettings,
) -> None:
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    held_out: list[np.ndarray] = []
    total = sum(len(row) for found in rows.values() for row in found)
    with staged_folder(dst, total * dtype.itemsize) as folder, writing(folder):
        for kind, parts in rows.items():
            # Whole rows come first, so that windows of training are whole rows as far as these go.
            found = sorted(parts, key=len, reverse=True)
            every = min(HELD_OUT_EVERY, max(2, len(found)))
            held_out += found[every - 1 :: every]
            _write_shards(folder, kind, [row for i, row in enumerate(found) if i % every != every - 1], end, dtype)
        if held_out:
            np.concatenate([*held_out, [end]]).astype(dtype).tofile(folder / HELD_OUT)
        sha256 = hashlib.sha256((src / "tokenizer.json").read_bytes()).hexdigest()
        described = {"tokenizer_sha256": sha256, "dtype": dtype.str, "sampled_from": src.name}
        described |= {"settings": {name: value for name, value in asdict(settings).items() if value != math.inf}}
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _write_shards(folder: Path, kind: str, rows: Sequence[np.ndarray], end: int, dtype: np.dtype) -> None:
    """Shards that end with one more end-of-text token, since a window of training reads the id behind it as well."""
    per_shard = max(1, SHARD // max(map(len, rows), default=1))
    for number, start in enumerate(range(0, len(rows), per_shard)):
        ids = np.concatenate([*rows[start : start + per_shard], [end]])
        ids.astype(dtype).tofile(folder / f"{kind}_{number:02d}.bin")
