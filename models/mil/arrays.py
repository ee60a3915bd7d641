"""MIL operations that move numbers: shapes, slices, gathering, joining. A result may be a view of an operand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from russet.engine.errors import UnsupportedModelError
from russet.models.mil.elementwise import Operation


def _ints(values: Any) -> list[int]:
    return [int(value) for value in np.atleast_1d(values)]


def reshape(x: np.ndarray, shape: Any) -> np.ndarray:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(_ints(shape))])


def concat(values: Sequence[np.ndarray], axis: Any, interleave: Any = False) -> np.ndarray:
    _only(not interleave, "concat with interleave")
    return np.concatenate([np.atleast_1d(value) for value in values], int(axis))


def gather(
    x: np.ndarray, indices: np.ndarray, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> np.ndarray:
    _only(int(batch_dims) == 0, "gather with batch dimensions")
    return np.take(x, np.asarray(indices).astype(np.int64), int(axis))


def slice_by_size(x: np.ndarray, begin: Any, size: Any) -> np.ndarray:
    starts, sizes = _ints(begin), _ints(size)
    cut = tuple(
        slice(start, None if count == -1 else start + count) for start, count in zip(starts, sizes, strict=True)
    )
    found = x[cut]
    wanted = [found.shape[i] if count == -1 else count for i, count in enumerate(sizes)]
    if min(starts) < 0 or list(found.shape) != wanted:
        raise IndexError(f"a slice of {sizes} from {starts} leaves the bounds of {list(x.shape)}")
    return found


def slice_by_index(x: np.ndarray, **bounds: Any) -> np.ndarray:
    return x[_index(x, **bounds)]


def slice_update(x: np.ndarray, update: np.ndarray, in_place: bool = False, **bounds: Any) -> np.ndarray:
    """`x` with a part of it replaced; `in_place` is the caller's word that nothing else will read `x`."""
    index = _index(x, **bounds)
    result = x if in_place else x.copy()
    if result[index].shape != update.shape:
        raise IndexError(f"an update of {list(update.shape)} does not fit a slice of {list(result[index].shape)}")
    result[index] = update
    return result


def _index(
    x: np.ndarray,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> tuple[Any, ...]:
    """What MIL's begins, ends and masks select, as numpy's index; bounds outside `x` are refused, not clamped."""
    index: list[Any] = []
    for i, length in enumerate(x.shape):
        start, stop = int(begin[i]), int(end[i])
        step = 1 if stride is None else int(stride[i])
        if squeeze_mask is not None and squeeze_mask[i]:
            index.append(start)
            continue
        open_start = begin_mask is not None and begin_mask[i]
        open_stop = end_mask is not None and end_mask[i]
        if (not open_start and abs(start) > length) or (not open_stop and abs(stop) > length):
            raise IndexError(f"a slice from {start} to {stop} leaves the bounds of {length}")
        index.append(slice(None if open_start else start, None if open_stop else stop, step))
    return tuple(index)


def _only(supported: bool, what: str) -> None:
    if not supported:
        raise UnsupportedModelError(f"The package uses {what}, which Russet's interpreter does not implement.")


ARRAYS: dict[str, Operation] = {
    "concat": concat,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(_ints(axes))),
    "gather": gather,
    "reshape": reshape,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "shape": lambda x: np.array(x.shape),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "transpose": lambda x, perm: x.transpose(_ints(perm)),
}

VIEWS = frozenset(("expand_dims", "identity", "cast", "reshape", "slice_by_index", "slice_by_size", "transpose"))
"""Operations whose result may share memory with their operand `x`."""
