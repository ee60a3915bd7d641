"""Rotary position embedding at explicit positions: contiguous, with gaps, or fractional.

Whole positions on a GPU go through MLX's fused operation. Everything else multiplies by cosines and sines that are made
once a pass and shared by all layers, which on a CPU is also the faster way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import mlx.core as mx
import numpy as np

from russet.models.config import Rope, RopeScaling


class OnDevice:
    """Whole, ascending positions of rows that the device chooses: int32 [n], of which the last is `end - 1`.

    The host can build what follows without them, and so does not wait for the choice.
    """

    def __init__(self, array: mx.array, end: int) -> None:
        self.array = array
        self.end = end

    def __len__(self) -> int:
        return self.array.shape[0]

    @cached_property
    def host(self) -> np.ndarray:
        """The same as float64; waits for the device."""
        return np.array(self.array).astype(np.float64)

    def last(self, rows: int) -> int | OnDevice:
        """Those of the last `rows` rows."""
        return self.end - 1 if rows == 1 else OnDevice(self.array[len(self) - rows :], self.end)


Positions = int | np.ndarray | OnDevice
"""The position of the first row where rows are contiguous, or one number a row (whole or fractional)."""

Rotate = Callable[[mx.array], mx.array]


def contiguous(positions: np.ndarray) -> Positions:
    """The first position where they are whole and without gaps, which is the faster way through a layer."""
    run = len(positions) and float(positions[0]).is_integer() and (np.diff(positions) == 1).all()
    return int(positions[0]) if run else positions


def inverse_frequencies(rope: Rope) -> np.ndarray:
    """Radians per position of each rotated pair, float64, `dims / 2` of them, with the scaling applied."""
    plain = rope.theta ** -(np.arange(0, rope.dims, 2) / rope.dims)
    scaling = rope.scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    stretched = plain / scaling.factor
    kept = _llama3_kept(scaling, plain) if scaling.kind == "llama3" else _yarn_kept(rope, scaling)
    return plain * kept + stretched * (1 - kept)


def _llama3_kept(scaling: RopeScaling, plain: np.ndarray) -> np.ndarray:
    """How much of each frequency stays as trained: all above one wavelength, none below another, a ramp between."""
    turns = scaling.original_length * plain / (2 * math.pi)
    return np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)


def _yarn_kept(rope: Rope, scaling: RopeScaling) -> np.ndarray:
    """YaRN's ramp over feature indices, between `beta_fast` and `beta_slow` turns in the trained length."""

    def index(turns: float) -> float:
        return rope.dims * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    if low == high:
        high += 0.001
    return 1 - np.clip((np.arange(rope.dims // 2) - low) / (high - low), 0, 1)


class Rotary:
    """One `Rope`, ready to rotate queries and keys of shape [batch, heads, rows, head_dim]."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self._inverse = inverse_frequencies(rope)
        self._amplitude = rope.scaling.attention_factor if rope.scaling else 1.0
        self._periods = mx.array(1 / self._inverse, dtype=mx.float32)
        self._last: tuple[np.ndarray | OnDevice, Rotate] | None = None

    def at(self, positions: Positions, rows: int, fused: bool) -> Rotate:
        """The rotation of `rows` rows at `positions`; `fused` uses MLX's operation where positions are whole."""
        if fused and isinstance(positions, int):
            return self._fused(positions)
        if isinstance(positions, int):
            return self._tabled(np.outer(np.arange(positions, positions + rows), self._inverse))
        # Rows that are stored layer by layer come with one array of positions.
        if self._last is None or self._last[0] is not positions:
            self._last = positions, self._apart(positions, fused)
        return self._last[1]

    def _apart(self, positions: np.ndarray | OnDevice, fused: bool) -> Rotate:
        """The rotation of rows that are not one after the other."""
        if fused and isinstance(positions, OnDevice):
            return self._with_gaps(positions.array)
        where = positions.host if isinstance(positions, OnDevice) else positions
        if fused and (where == np.floor(where)).all():
            return self._with_gaps(mx.array(where.astype(np.int32)))
        return self._tabled(np.outer(where, self._inverse))

    def table(self, start: int, rows: int) -> np.ndarray:
        """Cosines and sines of consecutive positions, [rows, 2, dims / 2] float32, the scaling's amplitude included."""
        angles = np.outer(np.arange(start, start + rows), self._inverse)
        return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * self._amplitude).astype(np.float32)

    def _fused(self, start: int | mx.array) -> Rotate:
        """From `start` on, or each sequence of the batch from its own number in `start`."""
        rope = self.rope

        def rotate(x: mx.array) -> mx.array:
            if self._amplitude != 1.0:
                x = mx.concatenate([x[..., : rope.dims] * self._amplitude, x[..., rope.dims :]], axis=-1)
            return mx.fast.rope(
                x, rope.dims, traditional=rope.interleaved, base=None, scale=1.0, offset=start, freqs=self._periods
            )

        return rotate

    def _with_gaps(self, positions: mx.array) -> Rotate:
        """Rows of one sequence as sequences of one row, which the fused operation takes at a position each: int32 [n].

        Tables for 16384 rows cost a host some 20 ms, while the GPU waits.
        """
        turn = self._fused(positions)

        def rotate(x: mx.array) -> mx.array:
            batch, heads, rows, dim = x.shape
            by_row = x.transpose(2, 1, 0, 3)
            if batch == 1:
                return turn(by_row).transpose(2, 1, 0, 3)
            turned = turn(by_row.reshape(rows, heads * batch, 1, dim))
            return turned.reshape(rows, heads, batch, dim).transpose(2, 1, 0, 3)

        return rotate

    def _tabled(self, angles: np.ndarray) -> Rotate:
        """x * cos + partner(x) * sin, where the partner of a pair's first feature carries a minus sign."""
        cos = (np.cos(angles) * self._amplitude).astype(np.float32)
        sin = (np.sin(angles) * self._amplitude).astype(np.float32)
        if self.rope.interleaved:
            cosines, sines = np.repeat(cos, 2, axis=-1), np.stack([-sin, sin], axis=-1).reshape(len(sin), -1)
        else:
            cosines, sines = np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)
        cosines, sines = mx.array(cosines), mx.array(sines)
        dims = self.rope.dims

        def rotate(x: mx.array) -> mx.array:
            turned = x if x.shape[-1] == dims else x[..., :dims]
            rotated = (turned * cosines + self._partner(turned) * sines).astype(x.dtype)
            return rotated if x.shape[-1] == dims else mx.concatenate([rotated, x[..., dims:]], axis=-1)

        return rotate

    def _partner(self, x: mx.array) -> mx.array:
        if self.rope.interleaved:
            return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
        half = x.shape[-1] // 2
        return mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
