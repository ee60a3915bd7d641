"""Rotary embedding in MIL: tables of cosines and signed sines, and rows of weights put in the order that suits them.

Interleaved pairs (0, 1), (2, 3), ... become halves by reordering the rows of the query and key projections: attention
only multiplies queries by keys, so an order that both share changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from russet.converters.coreml.bank import Bank, Var
from russet.converters.coreml.builder import mb
from russet.models.config import LayerSpec, Rope
from russet.models.rope import Rotary


def head_order(spec: LayerSpec) -> np.ndarray | None:
    """Where each feature of a head comes from, or None where heads stay as they are."""
    if not spec.rope.interleaved:
        return None
    rotated = np.arange(spec.rope.dims)
    return np.concatenate([rotated[0::2], rotated[1::2], np.arange(spec.rope.dims, spec.head_dim)])


def row_order(spec: LayerSpec, heads: int) -> np.ndarray | None:
    """The same for the rows of a projection to `heads` heads."""
    order = head_order(spec)
    if order is None:
        return None
    return (np.arange(heads)[:, None] * spec.head_dim + order).reshape(-1)


class Rotation:
    """The rotation of one function's rows by one `Rope`: `cos` and `sin` are [rows, dims], the first sines negative."""

    def __init__(self, rope: Rope, cos: Var, sin: Var) -> None:
        self.rope = rope
        self._cos = cos
        self._sin = sin

    @staticmethod
    def at(rope: Rope, bank: Bank, context: int, take: Callable[[Var], Var]) -> Rotation:
        """The rows of the tables that `take` takes; tables are float32, rounded in the graph."""
        tables = Rotary(rope).table(0, context)
        cos, sin = tables[:, 0], tables[:, 1]
        name = f"rope_{rope.dims}_{rope.theta:g}_{hash_of(rope)}"
        pair = (
            bank.constant(f"{name}_cos", np.concatenate([cos, cos], axis=1)),
            bank.constant(f"{name}_sin", np.concatenate([-sin, sin], axis=1)),
        )
        return Rotation(rope, *(mb.cast(x=take(table), dtype="fp16") for table in pair))

    def row(self, index: Var) -> Rotation:
        """The rotation of the single row at `index`."""
        return Rotation(self.rope, *(mb.gather(x=table, indices=index, axis=0) for table in (self._cos, self._sin)))

    def __call__(self, x: Var) -> Var:
        """x [1, heads, rows, head_dim], rotated."""
        dims, width = self.rope.dims, x.shape[-1]
        turned = x if dims == width else _features(x, 0, dims)
        halves = [_features(turned, dims // 2, dims // 2), _features(turned, 0, dims // 2)]
        partner = mb.concat(values=halves, axis=-1)
        rotated = mb.add(x=mb.mul(x=turned, y=self._cos), y=mb.mul(x=partner, y=self._sin))
        if dims == width:
            return rotated
        return mb.concat(values=[rotated, _features(x, dims, width - dims)], axis=-1)


def hash_of(rope: Rope) -> str:
    """A short name for what else a rope says, equal in every process."""
    import hashlib

    return hashlib.sha256(repr(rope).encode()).hexdigest()[:6]


def _features(x: Var, start: int, count: int) -> Var:
    return mb.slice_by_size(x=x, begin=[0, 0, 0, start], size=[-1, -1, -1, count])
