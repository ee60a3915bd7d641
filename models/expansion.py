"""When a product of many rows with packed weights is faster by way of the dense matrix.

MLX's quantised product unpacks a weight anew for every block of rows that it multiplies, and leaves a GPU's matrix
units partly idle. Unpacking once costs a pass over memory, which enough rows make up for. From how many rows on is
measured once for each device and kind of matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import mlx.core as mx

from russet.engine.device import on_gpu
from russet.engine.timing import now
from russet.kernels.base import mode
from russet.models.crossovers import Crossovers, Kind, device_key

if TYPE_CHECKING:
    from russet.models.linear import Affine

FEWEST_ROWS = 128
"""Below this nothing is expanded."""

MEASURED_FROM = 512
"""Rows that make a measurement worth its time; a shorter prompt goes by what an earlier one found."""

_TRIED = (2048, 512, FEWEST_ROWS)  # until the dense way no longer wins
_LARGEST = 4**12  # weights of the largest sample: with more, only the time grows
_MARGIN = 0.95  # the dense way must take less than this part of the packed one's time
_BUDGET_S = 0.01

Trial = Callable[[int], tuple[float, float]]


def pays(weight: Affine, rows: int, dtype: mx.Dtype) -> bool:
    """Whether `rows` rows of `dtype` are multiplied faster by the expanded weight on this device."""
    if rows < FEWEST_ROWS or not on_gpu() or mode() == "off":
        return False
    known, kind = _crossovers(), kind_of(weight, dtype)
    if kind not in known:
        if rows < MEASURED_FROM:
            return False
        known[kind] = crossover(_trial(weight, dtype, kind.weights))
    least = known[kind]
    return least is not None and rows >= least


@cache
def _crossovers() -> Crossovers:
    return Crossovers(device_key())


def kind_of(weight: Affine, dtype: mx.Dtype) -> Kind:
    """Matrices between one power of four and the next are taken together, and so are all from 16.8 million on."""
    size = min(_weights(weight), _LARGEST)
    return Kind(weight.bits, weight.group_size, str(dtype).rpartition(".")[2], 4 ** ((size.bit_length() - 1) // 2))


def _weights(weight: Affine) -> int:
    return weight.weight.size * 32 // weight.bits


def crossover(trial: Trial) -> int | None:
    """The rows from which on the dense way is faster, None for never.

    `trial` gives the seconds of the packed and of the dense way for a number of rows. Between two counts of which one
    is slower and one faster, the gain is taken to be linear: so are the times of both ways.
    """
    above: tuple[int, float] | None = None
    for rows in _TRIED:
        packed, dense = trial(rows)
        gain = _MARGIN * packed - dense
        if gain <= 0:
            if above is None:
                return None
            more, larger = above
            return round(rows + (more - rows) * -gain / (larger - gain))
        above = rows, gain
    return FEWEST_ROWS


def _trial(weight: Affine, dtype: mx.Dtype, weights: int) -> Trial:
    """Both ways timed with the first rows of a weight, about `weights` numbers of it."""
    columns = weight.scales.shape[1] * weight.group_size
    outputs = max(64, weights // columns // 64 * 64)
    part = weight.first(outputs)

    def trial(rows: int) -> tuple[float, float]:
        # A key of its own, so that sampling draws the same numbers with a measurement and without.
        x = mx.random.normal((rows, columns), dtype=dtype, key=mx.random.key(0))
        mx.eval(x, part.arrays)
        several = max(1, MEASURED_FROM // rows)
        packed, dense = shortest(
            [
                lambda: mx.eval([part.multiply(x) for _ in range(several)]),
                lambda: mx.eval([x @ part.expand(dtype).T for _ in range(several)]),
            ]
        )
        return packed, dense

    return trial


def shortest(works: Sequence[Callable[[], object]], clock: Callable[[], float] = now) -> list[float]:
    """The shortest seconds of each, after one run that does not count: other programs can only lengthen it.

    They run by turns, at least twice and then for about 10 ms, so that a change of the device's speed meets them all.
    """
    for work in works:
        work()
    best = [float("inf")] * len(works)
    begun = clock()
    for turn in range(8):
        if turn >= 2 and clock() - begun > _BUDGET_S:
            break
        for i, work in enumerate(works):
            start = clock()
            work()
            best[i] = min(best[i], clock() - start)
    return best
