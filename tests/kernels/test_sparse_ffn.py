from __future__ import annotations

import math

import metalsim
import mlx.core as mx
import numpy as np
import pytest
from kernel_runs import simulate, simulate_all_orders
from metalsim import COMPILER
from msl_to_cpp import MetalError

from russet.kernels import sparse_ffn
from russet.kernels.base import variant_name
from russet.kernels.packed import Format, format_of, is_none
from russet.kernels.sparse_ffn import DOWN, MAX_ROWS, gate_up, gate_up_vector, random_down, random_gate_up, settings

F16, BF16, F32 = mx.float16, mx.bfloat16, mx.float32
AFFINE, BALANCED = Format(4, 64, False), Format(2, 64, True)


def gates(x: mx.array, activation="relu"):
    """The kernel for one vector, or for rows."""
    return (gate_up_vector if x.ndim == 1 else gate_up)(activation)


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: install g++ or clang++")

# Rounding of the result: half a unit in the last place, and a little of the sum's own.
ALLOWED = {F16: 4e-4, BF16: 2.4e-3, F32: 3e-6}
ACT = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
}


def dense(dtype: mx.Dtype) -> Format:
    return Format(8 * dtype.size, 0, False)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(F32)).astype(np.float64)


def weights(width: int, w: mx.array, scales: mx.array, offsets: mx.array) -> np.ndarray:
    """Rows in float64, from the definition of the packing."""
    kind = format_of(width, w, scales, offsets)
    if kind.bits >= 16:
        return wide(w)
    codes = np.array(w)[:, :, None] >> (kind.bits * np.arange(32 // kind.bits, dtype=np.uint32)) & (2**kind.bits - 1)
    codes, scale = codes.reshape(w.shape[0], -1), wide(scales).reshape(w.shape[0], -1)
    each = width // scale.shape[1]
    scale = np.repeat(scale, each, 1)
    return (codes - 1.5) * scale if kind.balanced else codes * scale + np.repeat(wide(offsets), each, 1)


def exact_gate_up(x, gain, w, scales, offsets, chosen, activation="relu") -> np.ndarray:
    rows, (eps, threshold) = wide(x), wide(chosen)[:2]
    if not is_none(gain):
        rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + eps) * wide(gain)
    gate, up = np.split(rows @ weights(x.shape[-1], w, scales, offsets).T, 2, -1)
    act = ACT[activation](gate)
    return np.where(np.abs(act) <= threshold, 0, act * up)


def exact_down(a, residual, *rows) -> np.ndarray:
    used = wide(a).reshape(-1, a.shape[-1]).any(0)
    return wide(residual) + wide(a)[..., used] @ weights(residual.shape[-1], *rows)[used]


def error(found: mx.array, expected: np.ndarray) -> float:
    return float(np.linalg.norm(wide(found) - expected) / np.linalg.norm(expected))


@needs_compiler
@pytest.mark.parametrize(
    ("rows", "k", "neurons", "kind", "x_type", "dtype", "norm"),
    [
        (0, 1216, 41, dense(F16), F32, F16, True),  # loads in flight, then single ones, then lanes without work
        (2, 640, 17, dense(BF16), BF16, BF16, True),
        (5, 320, 23, dense(F32), F32, F32, False),
        (0, 1216, 67, AFFINE, F32, F16, True),
        (3, 640, 9, Format(4, 32, False), BF16, BF16, False),
        (0, 2304, 35, BALANCED, F32, F16, True),
        (9, 192, 8, Format(2, 0, True), F32, F32, False),
        (1, 320, 40, Format(8, 128, False), F16, F16, True),
    ],
)
def test_gates_and_active_up_rows_are_multiplied(rows, k, neurons, kind, x_type, dtype, norm):
    inputs = random_gate_up(rows, k, neurons, kind, x_type, dtype, norm)
    (a,) = simulate_all_orders(gates(inputs[0]), inputs)
    assert (a.shape, a.dtype) == ((rows, neurons) if rows else (neurons,), x_type)
    assert error(a, exact_gate_up(*inputs)) < ALLOWED[x_type]
    assert 0 < np.count_nonzero(wide(a)) < a.size


@needs_compiler
@pytest.mark.parametrize(
    ("rows", "neurons", "columns", "kind", "x_type", "dtype"),
    [
        (0, 1537, 96, dense(F16), F32, F16),  # lists of several neurons a thread, stripes that end with the columns
        (5, 300, 64, dense(F32), F32, F32),
        (16, 230, 64, dense(F16), F16, F16),  # two blocks of rows
        (0, 11700, 64, dense(F16), F32, F16),  # two windows of neurons
        (0, 400, 576, AFFINE, F32, F16),
        (3, 129, 64, Format(4, 32, False), BF16, BF16),
        (0, 401, 192, BALANCED, F32, F16),
        (6, 90, 128, Format(2, 128, True), BF16, BF16),  # two blocks of rows
        (1, 90, 96, Format(2, 0, True), F32, F32),  # columns that fill no stripe
        (0, 100, 64, Format(8, 64, False), F32, F16),
    ],
)
def test_listed_down_rows_are_added(rows, neurons, columns, kind, x_type, dtype):
    inputs = random_down(rows, neurons, columns, kind, x_type, dtype)
    (y,) = simulate_all_orders(DOWN, inputs)
    assert (y.shape, y.dtype) == ((rows, columns) if rows else (columns,), x_type)
    assert error(y, exact_down(*inputs)) < ALLOWED[x_type]


@pytest.mark.parametrize("kind", [dense(F32), AFFINE, Format(8, 64, False), BALANCED], ids=str)
@pytest.mark.parametrize("activation", ACT)
def test_the_references_are_exact_to_the_rounding(kind, activation):
    *inputs, _ = random_gate_up(3, 192, 30, kind, F32, F32)
    inputs.append(settings(1e-5, 0.2))
    assert error(gate_up(activation).reference(*inputs)[0], exact_gate_up(*inputs, activation)) < ALLOWED[F32]
    inputs = random_down(3, 50, 128, kind, F32, F32)
    assert error(DOWN.reference(*inputs)[0], exact_down(*inputs)) < ALLOWED[F32]


@needs_compiler
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_a_threshold_leaves_out_small_activations(activation, rows):
    """Of several rows each its own, though a neuron's weights are read as soon as one row needs them."""
    *inputs, none = random_gate_up(rows, 192, 40, dense(F32), F32, F32)
    a = simulate(gates(inputs[0], activation), [*inputs, settings(1e-5, 0.3)])[0]
    assert error(a, exact_gate_up(*inputs, settings(1e-5, 0.3), activation)) < ALLOWED[F32]
    assert 0 < np.count_nonzero(wide(a)) < np.count_nonzero(exact_gate_up(*inputs, none, activation))


def poisoned(w: mx.array, scales: mx.array, spared: np.ndarray) -> tuple[mx.array, mx.array]:
    """Weights whose rows are NaN but for `spared` ones."""
    keep = mx.array(spared)[:, None]
    if w.dtype == mx.uint32:
        return w, mx.where(keep, scales, mx.array(float("nan"), scales.dtype))
    return mx.where(keep, w, mx.array(float("nan"), w.dtype)), scales


@needs_compiler
@pytest.mark.parametrize(("rows", "kind"), [(0, dense(F16)), (5, dense(F16)), (0, AFFINE), (0, BALANCED)], ids=str)
def test_rows_of_inactive_neurons_are_not_read(rows, kind):
    x_type = F16 if rows else F32
    x, gain, w, scales, offsets, chosen = random_gate_up(rows, 320, 48, kind, x_type, F16)
    expected = exact_gate_up(x, gain, w, scales, offsets, chosen)
    used = expected.reshape(-1, 48).any(0)
    assert not used.all()
    w, scales = poisoned(w, scales, np.concatenate([np.ones(48, bool), used]))
    assert error(simulate(gates(x), (x, gain, w, scales, offsets, chosen))[0], expected) < ALLOWED[x_type]

    a, residual, w, scales, offsets = random_down(rows, 90, 64, kind, x_type, F16)
    expected = exact_down(a, residual, w, scales, offsets)
    w, scales = poisoned(w, scales, wide(a).reshape(-1, 90).any(0))
    assert error(simulate(DOWN, (a, residual, w, scales, offsets))[0], expected) < ALLOWED[x_type]


@needs_compiler
@pytest.mark.parametrize(("rows", "kind"), [(0, dense(F16)), (5, dense(F16)), (0, AFFINE), (0, BALANCED)], ids=str)
@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_weights_end_where_the_active_neurons_end(monkeypatch, rows, kind, target):
    """Not only do inactive rows leave no trace in the result: memory that is not there is not touched."""
    cut = [0]
    whole = metalsim._input_bytes

    def shortened(name: str, array: mx.array, source: str) -> list[bytes]:
        data, *rest = whole(name, array, source)
        return [data[: len(data) - cut[0]] if name == "w" else data, *rest]

    monkeypatch.setattr(metalsim, "_input_bytes", shortened)
    x_type = F16 if rows else F32
    for neurons in range(48, 40, -1):
        x, gain, w, *rest = random_gate_up(rows, 320, neurons, kind, x_type, F16)
        used = exact_gate_up(x, gain, w, *rest).reshape(-1, neurons).any(0)
        if used.sum() % 2:  # so that a simdgroup with an active neuron has an inactive one as well
            break
    # Inactive neurons last, so that their up rows end the weights.
    order = np.concatenate([np.flatnonzero(used), np.flatnonzero(~used)])
    order = mx.array(np.concatenate([order, neurons + order]))
    w, *rest = (part[order] if part.shape[0] == 2 * neurons else part for part in (w, *rest))
    cut[0] = int((~used).sum()) * w.nbytes // (2 * neurons)
    assert cut[0] > 0 and used.sum() % 2
    (a,) = simulate(gates(x), (x, gain, w, *rest), target)
    cut[0] = 0
    assert error(a, exact_gate_up(x, gain, w, *rest)) < ALLOWED[x_type]

    a, residual, w, *rest = random_down(rows, 90, 64, kind, x_type, F16)
    used = wide(a).reshape(-1, 90).any(0)
    order = mx.array(np.concatenate([np.flatnonzero(used), np.flatnonzero(~used)]))
    a, w, *rest = a[..., order], w[order], *(part[order] if part.shape[0] == 90 else part for part in rest)
    cut[0] = int((~used).sum()) * w.nbytes // 90
    assert (
        error(simulate(DOWN, (a, residual, w, *rest), target)[0], exact_down(a, residual, w, *rest)) < ALLOWED[x_type]
    )
    with pytest.raises(MetalError, match="buffer 'w'"):
        simulate(DOWN, (mx.ones_like(a), residual, w, *rest), target)


@needs_compiler
@pytest.mark.parametrize("kind", [dense(F16), AFFINE, BALANCED], ids=str)
@pytest.mark.parametrize("neurons", [90, 1156])
@pytest.mark.parametrize("active", ["none", "first", "one", "last", "all"])
def test_any_number_of_neurons_is_active(kind, neurons, active):
    """Lanes that take one number at a time, and four; simdgroups with nothing to do, with much, and with a part."""
    _, *rest = random_down(0, neurons, 64, kind, F32, F16)
    chosen = {"none": [], "first": [0], "one": [neurons - 2], "last": [neurons - 1], "all": list(range(neurons))}
    values = np.zeros(neurons, np.float32)
    values[chosen[active]] = 0.5 + np.arange(len(chosen[active])) % 90 / 64
    inputs = (mx.array(values), *rest)
    y = simulate(DOWN, inputs)[0]
    assert active != "none" or mx.array_equal(y, inputs[1])
    assert error(y, exact_down(*inputs)) < ALLOWED[F32]


@needs_compiler
@pytest.mark.parametrize("kind", [dense(F16), AFFINE, BALANCED], ids=str)
@pytest.mark.parametrize(("k", "neurons"), [(640, 90), (4608, 37), (9216, 24)])
def test_a_vector_as_cuda_takes_it(monkeypatch, kind, k, neurons):
    """More neurons in a threadgroup than lanes; rows that several simdgroups share; more than one chunk a lane."""
    monkeypatch.setattr(sparse_ffn, "CORES", 1)
    inputs = random_gate_up(0, k, neurons, kind, F32, F16)
    (a,) = simulate_all_orders(gates(inputs[0]), inputs, "cuda")
    assert error(a, exact_gate_up(*inputs)) < ALLOWED[F32]


@needs_compiler
@pytest.mark.parametrize(("sign", "share"), [(-1, 0), (1, 1)])
def test_no_or_every_gate_is_active(sign, share):
    x, gain, w, *rest = random_gate_up(0, 192, 21, dense(F16), F32, F16)
    w = mx.concatenate([mx.full((21, 192), 0.25 * sign, F16), w[21:]])
    inputs = (mx.abs(x), gain, w, *rest)
    a = simulate(gates(x), inputs)[0]
    assert np.count_nonzero(wide(a)) == share * 21
    assert not share or error(a, exact_gate_up(*inputs)) < ALLOWED[F32]


@needs_compiler
def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, *rest = random_gate_up(5, 320, 24, dense(F16), F16, F16)
    together = simulate(gates(x), (x, *rest))[0]
    alone = [simulate(gates(x), (mx.repeat(x[r : r + 1], 5, 0), *rest))[0][0] for r in range(5)]
    assert mx.array_equal(together, mx.stack(alone))


@needs_compiler
def test_what_is_not_a_number_is_not_hidden():
    x, *rest = random_gate_up(0, 192, 21, dense(F16), F32, F16)
    x[5] = float("nan")
    assert np.isnan(wide(simulate(gates(x), (x, *rest))[0])).all()


@pytest.mark.parametrize("kernel", [gate_up("relu"), gate_up_vector("relu"), DOWN], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_a_sample_launches_the_variant_it_stands_for(kernel, target):
    def real(rows, kind):
        if kernel is DOWN:
            return random_down(rows, 11008, 256, kind, F16, F16)
        return random_gate_up(rows, 4096, 300 if rows else 4096, kind, F16 if rows else F32, F16, rows <= 1)

    kinds = (dense(F16), AFFINE, Format(2, 128, True))
    counts = (0,) if kernel is gate_up_vector("relu") else (1, 16)
    for inputs in (*kernel.examples(target), *(real(rows, kind) for rows in counts for kind in kinds)):
        sample = kernel.sample(*inputs)
        wanted, launched = (variant_name(kernel.launch(target, *given), given) for given in (inputs, sample))
        assert launched == wanted
        assert sum(array.nbytes for array in sample) < 8_000_000


@pytest.mark.parametrize("target", ["metal", "cuda"])
@pytest.mark.parametrize("kind", [dense(F16), dense(F32), AFFINE, BALANCED, Format(8, 64, False)], ids=str)
def test_threadgroup_memory_stays_under_metals_limit(target, kind):
    dtype = F32 if kind.bits == 32 else F16
    for rows in (1, 2, MAX_ROWS):
        for neurons in (8, 576, 1536, 6656, 11008, 14336, 28672):
            t = dict(DOWN.launch(target, *random_down(rows, neurons, 64, kind, dtype, dtype)).template)
            threads, columns = 32 * t["SIMDGROUPS"], t["LANES"] * {32: 4, 2: 16}.get(kind.bits, 8)
            assert t["EACH_LISTED"] <= 32  # bits of the word that says which are active
            assert threads >= columns
            assert 2 * threads * t["EACH_LISTED"] + 4 * t["SIMDGROUPS"] * (columns + 1) <= 32768
