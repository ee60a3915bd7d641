"""y = x W^T for balanced 2-bit weights: W = (q - 1.5) scale, levels {-1.5, -0.5, 0.5, 1.5} times a scale.

x       [R, K], float16, bfloat16 or float32, R from 1 to 16, K a multiple of 64, starting on a 16-byte boundary
w       [N, K / 16] uint32, 16 weights a word, weight i at bits 2i: MLX's 2-bit affine packing; N at least 8
scales  [N], or [N, K / G] with G of 32, 64 or 128; any floating type
y       [R, N] in x's type

Products and sums are in float32, and the levels exact: what remains is the rounding of y and the order of the sum.
Two bodies share the work. Scalar products (q2_lanes) cost one multiply-add a weight and row; matrix tiles (q2_tiles)
cost the same for 1 row as for 8, on tensor cores or simdgroup matrices. Decoding writes 2 bits into a mantissa,
which needs no integer-to-float conversion (Kim et al. 2022, https://arxiv.org/abs/2211.10017).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import mlx.core as mx

from russet.kernels.backend import CORES, Backend, backend
from russet.kernels.base import Inputs, Kernel, Launch, mode

MAX_ROWS = 16
GROUPS = (0, 32, 64, 128)

_OUTPUTS_PER_TILE = 16
_PARTIAL_BYTES: dict[Backend, int] = {"cuda": 36 << 10, "metal": 32 << 10}
_SCALE_BYTES = 4 * _OUTPUTS_PER_TILE * 7
_TILES = (7, 4, 2, 1)
_FEW_OUTPUTS = (40, *(_OUTPUTS_PER_TILE * (rounds * CORES + 1) for rounds in (1, 2, 4)))
"""The fewest outputs for each count of tiles a threadgroup."""
_TILE_SIMDGROUPS: dict[Backend, int] = {"cuda": 16, "metal": 8}
_WORDS_HELD = 4
_LANE_OUTPUTS = 4
_LANE_SIMDGROUPS = 2
_LANE_ROWS = 4
_TOLERANCE = {mx.float16: 1e-3, mx.bfloat16: 8e-3, mx.float32: 1e-5}


def q2_matvec(x: mx.array, w: mx.array, scales: mx.array) -> mx.array:
    """Return x W^T over the last axis of x, by the body that suits the rows and the device, or by MLX's operations.

    More than 16 rows, or a shape outside the contract above, go to MLX. Raises ValueError if the shapes do not match.
    """
    k = w.shape[-1] * 16
    if x.shape[-1] != k or scales.shape[0] != w.shape[0] or group_size(w, scales) not in GROUPS:
        raise ValueError(f"x {x.shape}, w {w.shape} and scales {scales.shape} do not make a 2-bit product.")
    rows = x.size // k
    # Each MLX operation costs host time, an idle reshape too.
    flat = x if x.ndim == 2 else x.reshape(rows, k)
    if rows > MAX_ROWS or k % 64 or w.shape[0] < 8:
        y = _reference(flat, w, scales)[0]
    else:
        y = (TILES if _suits_tiles(rows, x.dtype, backend()) else LANES)(flat, w, scales)[0]
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], w.shape[0])


def q2_serves() -> bool:
    """Whether `q2_matvec` runs by a kernel here, as far as is known."""
    return mode() == "on" and backend() is not None and not (TILES.disabled or LANES.disabled)


def group_size(w: mx.array, scales: mx.array) -> int:
    """Weights a scale, 0 for one scale an output."""
    return 0 if scales.ndim == 1 else w.shape[1] * 16 // scales.shape[1]


def affine(w: mx.array, scales: mx.array) -> tuple[mx.array, mx.array, int]:
    """Scales, biases and group size of the same weights in MLX's affine form, in float32, where it is exact."""
    wide, k = scales.astype(mx.float32), w.shape[1] * 16
    group = group_size(w, scales)
    if not group:
        group = next(size for size in (128, 64, 32) if k % size == 0)
        wide = mx.broadcast_to(wide[:, None], (w.shape[0], k // group))
    return wide, -1.5 * wide, group


def random_inputs(rows: int, n: int, k: int, group: int, dtype: mx.Dtype, scale_dtype: mx.Dtype) -> Inputs:
    """Random x, w and scales, the same ones each time."""
    keys = mx.random.split(mx.random.key(rows * n + k), 3)
    w = mx.random.randint(0, 1 << 16, (2, n, k // 16), mx.uint32, keys[0])
    scales = mx.random.uniform(0.5, 1.5, (n, k // group) if group else (n,), key=keys[1]) / k**0.5
    x = mx.random.normal((rows, k), key=keys[2])
    return x.astype(dtype), w[0] << 16 | w[1], scales.astype(scale_dtype)


def _suits_tiles(rows: int, dtype: mx.Dtype, target: Backend | None) -> bool:
    # Tensor cores round float32. On Apple GPUs a tile costs 8 rows' multiply-adds whatever the rows.
    return dtype != mx.float32 if target == "cuda" else rows > _LANE_ROWS


def _reference(x: mx.array, w: mx.array, scales: mx.array) -> list[mx.array]:
    # CUDA's quantized_matmul takes no float32 with 2 bits in groups of 128 (MLX 0.32.4).
    wide, biases, group = affine(w, scales)
    y = x.astype(mx.float32) @ mx.dequantize(w, wide, biases, group, 2).T
    return [y.astype(x.dtype)]


def _made(rows: int) -> int:
    """The rows that a variant is made for."""
    return next(count for count in (1, 2, 4, 8, 16) if count >= rows)


def _parts(run: int, group: int) -> int:
    """Groups in a step, the `run` words that each of four lanes reads at once."""
    return max(1, 64 * run // group) if group else 1


def _words_per_load(k: int, group: int, rows: int) -> int:
    """Words that a lane reads at once: what leaves a matrix of 8 columns room for the rows of each group in a step."""
    fits = (run for run in (4, 2) if k % (64 * run) == 0 and _parts(run, group) <= min(4, max(1, 8 // rows)))
    return next(fits, 1)


def _spreads(k: int, group: int, rows: int) -> bool:
    """Whether lanes read the words of four steps at once: where there are so many rows that a load would be short."""
    return group in (64, 128) and rows in (2, 4, 8) and k % 256 == 0


def _launch_tiles(target: Backend, x: mx.array, w: mx.array, scales: mx.array) -> Launch:
    (rows, k), n = x.shape, w.shape[0]
    sizes = _tile_sizes(target, rows, n, k, group_size(w, scales))
    template = (("T", x.dtype), ("S", scales.dtype), *sizes.items())
    threads, outputs = 32 * sizes["SIMDGROUPS"], sizes["TILES"] * _OUTPUTS_PER_TILE
    return Launch((-(-n // outputs) * threads, 1, 1), (threads, 1, 1), template, ((rows, n),), (x.dtype,))


def _tile_sizes(target: Backend, rows: int, n: int, k: int, group: int) -> dict[str, int]:
    """The template arguments of q2_tiles but for the types."""
    made = _made(rows)
    spread = _spreads(k, group, made)
    run = 1 if spread else _words_per_load(k, group, made)
    columns = made * _parts(run, group)
    held = max(1, min(_WORDS_HELD // (run * -(-columns // 8)), k // (64 * run)))
    # Tiles whose sums have room at once, for one simdgroup.
    room = (_PARTIAL_BYTES[target] - _SCALE_BYTES) // (_OUTPUTS_PER_TILE * columns * 4)
    simdgroups, most = min(_TILE_SIMDGROUPS[target], room), min(max(_TILE_SIMDGROUPS.values()), room)
    # Input in several slices needs the sums of all tiles until the last.
    whole = columns <= 8 and k <= 64 * run * held * most
    each = _tiles_each(n, max(_TILES) if whole else room // most)
    return {
        "G": group,
        "RUN": run,
        "HELD": held,
        "SPREAD": int(spread),
        "AHEAD": min(3 if group == 0 and made == 8 else 2, each),
        "EARLY": int(made <= 8 if group == 0 else spread and made <= 4),
        "TILES": each,
        "PHASE": min(each, room // simdgroups),
        "ROWS": made,
        "SIMDGROUPS": simdgroups,
    }


def _tiles_each(n: int, most: int) -> int:
    """Tiles a threadgroup. Cores take threadgroups in rounds: the tiles of all rounds count, and the input of each."""
    tiles = -(-n // _OUTPUTS_PER_TILE)
    allowed = (each for each in _TILES if each <= most)
    return min(allowed, key=lambda each: -(-tiles // (each * CORES)) * (each + 0.5))


def _launch_lanes(target: Backend, x: mx.array, w: mx.array, scales: mx.array) -> Launch:
    rows, n = x.shape[0], w.shape[0]
    each = min(rows, _LANE_ROWS)
    threads = 32 * _LANE_SIMDGROUPS
    template = (
        ("T", x.dtype),
        ("G", group_size(w, scales)),
        ("ROWS", each),
        ("OUTPUTS", _LANE_OUTPUTS),
        ("SIMDGROUPS", _LANE_SIMDGROUPS),
    )
    blocks = -(-n // (_LANE_OUTPUTS * _LANE_SIMDGROUPS))
    grid = (blocks * threads, -(-rows // each), 1)
    return Launch(grid, (threads, 1, 1), template, ((rows, n),), (x.dtype,))


def _sample(x: mx.array, w: mx.array, scales: mx.array) -> Inputs:
    (rows, k), n, group = x.shape, w.shape[0], group_size(w, scales)
    # Shorter rows hold fewer words, and are small as they are.
    each = 4 if _spreads(k, group, _made(rows)) else _words_per_load(k, group, _made(rows))
    short = {1: 576, 2: 640, 4: 768}[each] if k >= 768 else k
    few = next(few for few in _FEW_OUTPUTS if _all_sizes(rows, few, short, group) == _all_sizes(rows, n, k, group))
    return random_inputs(rows, few, short, group, x.dtype, scales.dtype)


def _all_sizes(rows: int, n: int, k: int, group: int) -> list[dict[str, int]]:
    return [_tile_sizes(target, rows, n, k, group) for target in _TILE_SIMDGROUPS]


def _examples(dtypes: dict[Backend, tuple[mx.Dtype, ...]], rows: tuple[int, ...], target: Backend) -> Iterator[Inputs]:
    for dtype, group, count in product(dtypes[target], GROUPS, rows):
        # A k for each count of words that a lane reads at once.
        for k in (384, 768) if group else (320, 384, 768):
            yield random_inputs(count, 40, k, group, dtype, dtype)


_ALL = (mx.float16, mx.bfloat16, mx.float32)
_INPUTS = ("x", "w", "scales")

TILES = Kernel(
    name="q2_tiles",
    body="q2_tiles.metal",
    headers=("bounds.h", "matrices.h", "q2.h"),
    inputs=_INPUTS,
    outputs=("out",),
    reference=_reference,
    launch=_launch_tiles,
    sample=_sample,
    examples=lambda target: _examples({"metal": _ALL, "cuda": _ALL[:2]}, (5, 11), target),
    tolerance=_TOLERANCE,
)
LANES = Kernel(
    name="q2_lanes",
    body="q2_lanes.metal",
    headers=("matrices.h", "q2.h"),
    inputs=_INPUTS,
    outputs=("out",),
    reference=_reference,
    launch=_launch_lanes,
    sample=_sample,
    examples=lambda target: _examples({"metal": _ALL, "cuda": _ALL}, (1, 2, 3, 4, 7), target),
    tolerance=_TOLERANCE,
)
