"""The rows of one call of a function: their positions, what they see, and how they are rotated.

Positions are compared as int32, since float16 has no odd numbers above 2048.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from russet.converters.coreml.bank import Bank, Var
from russet.converters.coreml.builder import mb
from russet.converters.coreml.rotation import Rotation
from russet.models.config import DecoderConfig, Rope

HIDDEN = -3e4
"""What is added to the score of a key that is not seen: far below any score, and room for them within float16."""


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Rows:
    """`count` rows (None: as many as the call brings) at `begin` to `end`, both int32 [1].

    `visible` are booleans [1, 1, rows, context] by attention window; `rotations` by rope.
    """

    count: int | None
    begin: Var
    end: Var
    visible: dict[int | None, Var]
    rotations: dict[Rope, Rotation]
    masks: dict[tuple[int | None, int], Var] = field(default_factory=dict)

    @staticmethod
    def of(
        config: DecoderConfig, layers: range, bank: Bank, context: int, count: int | None, begin: Var, end: Var
    ) -> Rows:
        """The rows of a call for some layers of a decoder."""

        def take(table: Var) -> Var:
            start = mb.concat(values=[begin, ints(0)], axis=0)
            width = table.shape[1]
            if count is not None:
                return mb.slice_by_size(x=table, begin=start, size=ints(count, width))
            return mb.slice_by_index(x=table, begin=start, end=mb.concat(values=[end, ints(width)], axis=0))

        specs = [config.layers[i] for i in layers]
        slots = bank.constant("slots", np.arange(context, dtype=np.int32).reshape(1, 1, 1, context))
        if count is None:
            at = mb.slice_by_index(
                x=bank.constant("positions", np.arange(context, dtype=np.int32)), begin=begin, end=end
            )
            queries = mb.reshape(x=at, shape=[1, 1, -1, 1])
        else:
            offsets = bank.constant(f"offsets_{count}", np.arange(count, dtype=np.int32).reshape(1, 1, count, 1))
            queries = mb.add(x=offsets, y=begin)
        windows = dict.fromkeys(spec.window for spec in specs)
        ropes = dict.fromkeys(spec.rope for spec in specs)
        return Rows(
            count,
            begin,
            end,
            {window: _visible(slots, queries, window) for window in windows},
            {rope: Rotation.at(rope, bank, context, take) for rope in ropes},
        )

    def only(self, index: Var) -> Rows:
        """The single row at `index` (int32 [1]) of these."""
        return replace(
            self,
            count=1,
            masks={},
            visible={key: _row(visible, index) for key, visible in self.visible.items()},
            rotations={rope: rotation.row(index) for rope, rotation in self.rotations.items()},
        )

    def without_slot(self, hidden: Var) -> Rows:
        """The same, with what `hidden` (booleans [1, 1, 1, context]) says seen by nobody."""
        shown = mb.logical_not(x=hidden)
        visible = {key: mb.logical_and(x=seen, y=shown) for key, seen in self.visible.items()}
        return replace(self, visible=visible, masks={})

    def mask(self, window: int | None, group: int) -> Var:
        """What softmax attention adds to scores of `group` heads side by side: 0 where a key is seen, else `HIDDEN`."""
        if (window, group) not in self.masks:
            unseen = mb.sub(x=mb.cast(x=self.visible[window], dtype="fp16"), y=np.float16(1))
            self.masks[window, group] = tiled(mb.mul(x=unseen, y=np.float16(-HIDDEN)), group)
        return self.masks[window, group]


def tiled(mask: Var, group: int) -> Var:
    """A mask of rows, repeated for `group` heads."""
    return mask if group == 1 else mb.concat(values=[mask] * group, axis=2)


def _visible(slots: Var, queries: Var, window: int | None) -> Var:
    seen = mb.less_equal(x=slots, y=queries)
    if window is None:
        return seen
    return mb.logical_and(x=seen, y=mb.greater(x=slots, y=mb.sub(x=queries, y=np.int32(window))))


def _row(visible: Var, index: Var) -> Var:
    # MIL gathers numbers, not booleans.
    taken = mb.gather(x=mb.cast(x=visible, dtype="int32"), indices=index, axis=2)
    return mb.equal(x=taken, y=np.int32(1))
