from __future__ import annotations

import mlx.core as mx
import pytest

from russet.kernels.base import relative_error
from russet.models import expansion, linear
from russet.models.crossovers import Crossovers, Kind
from russet.models.expansion import crossover, kind_of, pays, shortest
from russet.models.linear import Affine, Quantized


def packed(outputs: int = 96, inputs: int = 128, bits: int = 4, dtype: mx.Dtype = mx.float32) -> Affine:
    weight = mx.random.normal((outputs, inputs), key=mx.random.key(1)) * inputs**-0.5
    return Affine(*mx.quantize(weight.astype(dtype), 64, bits), 64, bits)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A GPU whose dense way is faster from 320 rows on; the list grows by each measurement."""
    made: list[Affine] = []

    def trial(weight, dtype, weights):
        made.append(weight)
        return lambda rows: (rows / 0.95, 192 + rows * 0.4)

    known = Crossovers("a GPU", tmp_path / "crossovers.json")
    monkeypatch.setattr(expansion, "on_gpu", lambda: True)
    monkeypatch.setattr(expansion, "mode", lambda: "on")
    monkeypatch.setattr(expansion, "_crossovers", lambda: known)
    monkeypatch.setattr(expansion, "_trial", trial)
    return made


def test_the_crossover_lies_where_the_times_meet():
    assert crossover(lambda rows: (rows / 0.95, 192 + rows * 0.4)) == 320
    assert crossover(lambda rows: (rows / 0.95, 1200 + rows * 0.25)) == 1600


def test_a_way_that_always_or_never_wins():
    assert crossover(lambda rows: (rows, rows / 2)) == 128
    assert crossover(lambda rows: (rows, rows + 1)) is None


def test_nothing_is_timed_below_a_count_that_loses():
    tried = []

    def trial(rows):
        tried.append(rows)
        return (rows, rows / 2) if rows > 512 else (rows, rows * 2)

    assert 512 < (crossover(trial) or 0) < 2048
    assert tried == [2048, 512]


def test_a_gain_within_the_noise_is_none():
    assert crossover(lambda rows: (rows, rows * 0.97)) is None


def test_a_win_at_few_rows_only_does_not_count():
    assert crossover(lambda rows: (rows, 1.0) if rows < 512 else (1.0, rows)) is None


def test_rows_decide(asked):
    weight = packed()
    assert pays(weight, 512, mx.float16)
    assert pays(weight, 320, mx.float16)
    assert not pays(weight, 319, mx.float16)
    assert len(asked) == 1


def test_a_short_prompt_measures_nothing(asked):
    assert not pays(packed(), 511, mx.float16)
    assert not pays(packed(), 1, mx.float16)
    assert asked == []


def test_each_kind_is_measured_once(asked):
    for _ in range(2):
        assert pays(packed(), 2048, mx.float16)
        assert pays(packed(), 2048, mx.bfloat16)
        assert pays(packed(bits=2), 2048, mx.float16)
        assert pays(packed(outputs=512), 2048, mx.float16)
    assert len(asked) == 4


def test_kernels_off_or_a_cpu_leave_weights_packed(asked, monkeypatch):
    monkeypatch.setattr(expansion, "mode", lambda: "off")
    assert not pays(packed(), 2048, mx.float16)
    monkeypatch.setattr(expansion, "mode", lambda: "reference")
    assert pays(packed(), 2048, mx.float16)
    monkeypatch.setattr(expansion, "on_gpu", lambda: False)
    assert not pays(packed(), 2048, mx.float16)


def test_sizes_go_by_powers_of_four_up_to_16_million():
    def kind(outputs: int) -> int:
        words = mx.zeros((outputs, 4096 * 4 // 32), dtype=mx.uint32)
        return kind_of(Affine(words, mx.zeros((outputs, 64)), mx.zeros((outputs, 64)), 64, 4), mx.float16).weights

    assert [kind(outputs) for outputs in (256, 1023, 1024, 4096, 22016)] == [4**10, 4**10, 4**11, 4**12, 4**12]
    assert kind_of(packed(bits=2), mx.bfloat16) == Kind(2, 64, "bfloat16", 4**6)


def test_the_shortest_run_counts_but_not_the_first():
    now = [0.0]
    durations = iter([9.0, 0.001, 0.012, 0.004, 0.003, 0.002] + [0.001] * 8)

    def work():
        now[0] += next(durations)

    # Two works by turns: 9 and 0.001 warm up, then two turns although the first takes 16 ms.
    assert shortest([work, work], lambda: now[0]) == pytest.approx([0.003, 0.002])
    assert len(list(durations)) == 8


def test_a_real_trial_times_both_ways():
    trial = expansion._trial(packed(256), mx.float32, 4**7)
    assert min(trial(128)) > 0


def test_a_trial_leaves_the_random_numbers_alone():
    mx.random.seed(3)
    expected = mx.random.uniform().item()
    mx.random.seed(3)
    expansion._trial(packed(), mx.float32, 4**6)(128)
    assert mx.random.uniform().item() == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_both_ways_agree(monkeypatch, bias, dtype):
    weight = packed(dtype=dtype)
    layer = Quantized(weight, mx.random.normal((96,), key=mx.random.key(2)).astype(dtype) if bias else None)
    x = mx.random.normal((1, 128, 128), key=mx.random.key(3)).astype(dtype)
    residual = mx.random.normal((1, 128, 96), key=mx.random.key(4)).astype(dtype)
    stock = [layer(x), layer.add_to(residual, x)]
    mx.eval(stock)
    monkeypatch.setattr(linear, "pays", lambda *_: True)
    monkeypatch.setattr(Affine, "multiply", lambda *_: pytest.fail("the packed way was taken"))
    for y, expected in zip((layer(x), layer.add_to(residual, x)), stock, strict=True):
        assert y.dtype == dtype
        # MLX's own product of packed float16 weights is up to 2e-3 off on a CPU, the dense one 6e-4.
        assert relative_error(y, expected) < (1e-6 if dtype == mx.float32 else 3e-3)


def test_few_rows_never_ask(monkeypatch):
    monkeypatch.setattr(linear, "pays", lambda *_: pytest.fail("a decode step asked"))
    assert Quantized(packed())(mx.ones((1, 127, 128))).shape == (1, 127, 96)


def test_batched_rows_count_together(monkeypatch):
    seen = []
    monkeypatch.setattr(linear, "pays", lambda weight, rows, dtype: seen.append((rows, dtype)))
    Quantized(packed())(mx.ones((4, 32, 128)))
    assert seen == [(128, mx.float32)]


def test_a_decoder_says_whether_it_is_packed(tiny_model):
    decoder = tiny_model.decoder
    assert not decoder.packed
    dense = decoder.blocks[0].out
    decoder.blocks[0].out = Quantized(packed())
    assert decoder.packed
    decoder.blocks[0].out = dense
