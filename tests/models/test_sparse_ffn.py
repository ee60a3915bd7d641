from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from russet.engine.errors import UnsupportedModelError
from russet.kernels import base
from russet.models import sparse_ffn as module
from russet.models.activations import gated
from russet.models.linear import Affine, Branches, Dense, Linear, Quantized, branches
from russet.models.norm import RMSNorm
from russet.models.sparse_ffn import GatheredFFN, KernelFFN, NeuronMajor, down_projection, step_ffn
from russet.models.sparsity import read_sparsity

HIDDEN, FFN = 64, 96
F32 = mx.float32


@pytest.fixture
def weights() -> tuple[RMSNorm, mx.array, mx.array, mx.array]:
    """A norm, gate, up and down; gates lean to the negative, so that few neurons are active."""
    keys = mx.random.split(mx.random.key(1), 4)
    gate, up = (mx.random.normal((FFN, HIDDEN), key=key) / 8 for key in keys[:2])
    down = mx.random.normal((HIDDEN, FFN), key=keys[2]) / 8
    return RMSNorm(mx.random.uniform(0.5, 1.5, (HIDDEN,), key=keys[3]), 1e-5), gate, up, down


def rows(count: int) -> mx.array:
    return mx.random.normal((1, count, HIDDEN), key=mx.random.key(count))


def expected(h, norm, gate, up, down, activation="relu", threshold=0.0) -> np.ndarray:
    x = norm(h)
    act = gated(activation, compiled=False)(x @ gate.T, mx.ones((1,)))
    act = mx.where(mx.abs(act) <= threshold, 0, act)
    return np.array(h + (act * (x @ up.T)) @ down.T)


def close(found: mx.array, wanted: np.ndarray) -> bool:
    return np.allclose(np.array(found), wanted, rtol=1e-4, atol=1e-5)


def gathered(weights, activation="relu", threshold=0.0):
    norm, gate, up, down = weights
    maps = Branches([Dense(gate), Dense(up)])
    return step_ffn(norm, maps, down_projection(down, None, False, True), activation, threshold)


@pytest.fixture
def small(monkeypatch):
    """Matrices of any size are gathered from."""
    monkeypatch.setattr(module, "_GATHER_WEIGHTS", 0)
    monkeypatch.setattr(module, "_GATHER_ROWS", 7)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.1])
@pytest.mark.parametrize(("activation", "threshold"), [("relu", 0.0), ("silu", 0.3)])
def test_gathering_rows_gives_the_dense_result(weights, small, monkeypatch, share, activation, threshold):
    monkeypatch.setattr(module, "_GATHER_SHARE", share)
    ffn = gathered(weights, activation, threshold)
    assert isinstance(ffn, GatheredFFN)
    h = rows(1)
    assert close(ffn(h), expected(h, *weights, activation, threshold))


def test_rows_of_inactive_neurons_are_not_gathered(weights, small, monkeypatch):
    monkeypatch.setattr(module, "_GATHER_SHARE", 1.1)
    norm, gate, up, down = weights
    h = rows(1)
    idle = (norm(h) @ gate.T).reshape(-1) <= 0
    up = mx.where(idle[:, None], mx.array(float("nan")), up)
    assert close(gathered((norm, gate, up, down))(h), expected(h, *weights))


def test_a_threshold_holds_for_several_rows_too(weights):
    ffn = gathered(weights, "silu", 0.3)
    assert ffn is not None
    assert ffn.takes(16)
    assert not ffn.takes(17)
    h = rows(5)
    assert close(ffn(h), expected(h, *weights, "silu", 0.3))
    assert not close(ffn(h), expected(h, *weights, "silu"))


def test_small_exact_layers_stay_dense_on_a_cpu(weights):
    ffn = gathered(weights)
    assert ffn is not None
    assert not ffn.takes(1)


def packed(weight: mx.array) -> Affine:
    return Affine(*mx.quantize(weight, 32, 4), 32, 4)


def on_a_gpu(monkeypatch) -> None:
    """The kernels' references serve, as `RUSSET_KERNELS=reference` has it."""
    monkeypatch.setenv("RUSSET_KERNELS", "reference")
    base.mode.cache_clear()
    monkeypatch.setattr(module, "on_gpu", lambda: True)


@pytest.fixture
def gpu(monkeypatch):
    on_a_gpu(monkeypatch)
    yield
    monkeypatch.undo()
    base.mode.cache_clear()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "packed"])
def test_the_kernels_take_the_layers_weights_as_they_are(gpu, weights, count, quantized):
    norm, gate, up, down = weights
    form = packed if quantized else (lambda weight: weight)
    maps = branches([form(gate), form(up)], [None, None], join=True)
    ffn = step_ffn(norm, maps, down_projection(form(mx.contiguous(down.T)), None, True, True), "relu", 0.0)
    assert isinstance(ffn, KernelFFN)
    assert ffn.takes(16) and not ffn.takes(17), "so many rows have hardly a neuron that none of them uses"
    if quantized:
        gate, up, down = packed(gate).expand(F32), packed(up).expand(F32), packed(mx.contiguous(down.T)).expand(F32).T
    h = rows(count)
    assert close(ffn(h), expected(h, norm, gate, up, down))
    if count == 1:
        assert close(ffn(h.reshape(-1)), expected(h, norm, gate, up, down).reshape(-1))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_kernels_leave_out_what_a_threshold_cuts(gpu, weights, count, activation):
    norm, gate, up, down = weights
    maps = branches([gate, up], [None, None], join=True)
    ffn = step_ffn(norm, maps, down_projection(down, None, False, True), activation, 0.3)
    assert isinstance(ffn, KernelFFN)
    h = rows(count)
    assert close(ffn(h), expected(h, *weights, activation, 0.3))
    assert not close(ffn(h), expected(h, *weights, activation))


@pytest.mark.parametrize("off", ["gate_up", "gate_up_vector", "down"])
def test_a_kernel_that_is_off_leaves_the_ffn_dense(gpu, weights, monkeypatch, off):
    norm, gate, up, down = weights
    maps = branches([gate, up], [None, None], join=True)
    ffn = step_ffn(norm, maps, down_projection(down, None, False, True), "relu", 0.0)
    assert isinstance(ffn, KernelFFN) and ffn.takes(1) and not ffn.disabled
    kernels = {"gate_up": module.gate_up("relu"), "gate_up_vector": module.gate_up_vector("relu"), "down": module.DOWN}
    monkeypatch.setattr(kernels[off], "_disabled", "its error is too large")
    assert ffn.disabled and not ffn.takes(1)


def test_what_the_kernels_cannot_take_stays_dense(gpu, weights):
    norm, gate, up, down = weights
    maps = branches([gate, up], [None, None], join=True)
    by_neuron = down_projection(down, None, False, True)
    made = [
        step_ffn(norm, maps, by_neuron, "silu", 0.0),
        step_ffn(norm, maps, down_projection(packed(down), None, False, True), "relu", 0.0),
        step_ffn(norm, branches([gate[:, :48], up[:, :48]], [None, None], join=True), by_neuron, "relu", 0.0),
    ]
    assert made == [None] * 3


@pytest.mark.parametrize("stored", [False, True])
def test_a_neuron_major_projection_multiplies_alike(weights, stored):
    down, x = weights[3], mx.random.normal((2, 3, FFN))
    made = down_projection(mx.contiguous(down.T) if stored else down, None, stored, True)
    assert isinstance(made, NeuronMajor)
    assert close(made(x), np.array(x @ down.T))
    assert close(made.add_to(mx.ones((HIDDEN,)), x), 1 + np.array(x @ down.T))
    by_neuron = down_projection(packed(mx.contiguous(down.T)), None, True, True)
    assert close(by_neuron(x), np.array(x @ packed(mx.contiguous(down.T)).expand(F32)))


def test_packed_weights_are_not_rounded_again_and_a_note_says_so(gpu, weights, caplog):
    module._say_dense.cache_clear()
    for _ in range(2):
        made: Linear = down_projection(packed(weights[3]), None, False, True)
    assert isinstance(made, Quantized)
    (record,) = caplog.records
    assert "`russet sparsify`" in record.getMessage()


def test_a_bias_beside_rows_by_neuron_is_refused(weights):
    with pytest.raises(UnsupportedModelError, match="one without the other"):
        down_projection(weights[3], mx.zeros((HIDDEN,)), True, True)


def test_a_folder_says_how_its_ffns_are_stored_and_cut():
    sparsity = read_sparsity({"ffn_down": "neuron_major", "ffn_thresholds": [0.5, 0]}, 2)
    assert sparsity.neuron_major
    assert [sparsity.threshold(i) for i in range(2)] == [0.5, 0.0]
    assert read_sparsity({}, 2).threshold(1) == 0.0


@pytest.mark.parametrize(
    "config",
    [{"ffn_down": "other"}, {"ffn_thresholds": [1.0]}, {"ffn_thresholds": [1.0, -1]}, {"ffn_thresholds": "0.5"}],
)
def test_what_a_folder_cannot_say_is_refused(config):
    with pytest.raises(UnsupportedModelError, match=r"config\.json has ffn_"):
        read_sparsity(config, 2)
