"""What a step costs: operations counted in MLX's graph, and bytes."""

from __future__ import annotations

import mlx.core as mx
import pytest

from russet.bench import shapes, work
from russet.bench.ours import Russet
from russet.bench.shape_configs import SHAPES
from russet.bench.step import operations, read_bytes, step_cost
from russet.models.families import read_decoder

TINY = {
    "llama": {**SHAPES["llama-2-7b"], "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256},
    "afm": {**SHAPES["afm-3b"], "hidden_dim": 64, "num_layers": 4, "num_kv_reuse_layers": 2, "num_heads": 2}
    | {"num_kv_heads": 1, "vocab_size": 256, "hidden_dim_scale_factor": 4.0},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in TINY.items():
        monkeypatch.setitem(SHAPES, name, config)


def test_views_do_not_count_and_an_operation_counts_once() -> None:
    x, two = mx.ones((4, 4)), mx.array([2.0])
    mx.eval(x, two)
    quotient, rest = mx.divmod(mx.exp(x).reshape(2, 8), two)
    # The reshape, the transposition and the broadcast are views.
    assert operations(quotient, rest.T) == 2
    assert operations(x + 1) == 1


def test_every_layer_of_a_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for layers in (2, 3, 4):
        monkeypatch.setitem(SHAPES, "llama", {**TINY["llama"], "num_hidden_layers": layers})
        model = shapes.random_model("llama", 4)
        counts[layers] = step_cost(Russet(model, model.weights_bytes), 5).operations
    assert counts[3] - counts[2] == counts[4] - counts[3] > 5


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_both_engines_take_a_shape(name: str, bits: int) -> None:
    ours, theirs = shapes.random_model(name, bits), shapes.MlxLmShape(name, bits)
    prompt = shapes.random_prompt(9, ours.vocab_size)
    for contender in (Russet(ours, ours.weights_bytes), theirs):
        assert len(contender.run(prompt, 3).tokens) == 3
        assert step_cost(contender, 5).operations > 20
    assert theirs.weights_bytes == pytest.approx(ours.weights_bytes, rel=0.02)


def test_two_bit_weights_are_balanced() -> None:
    affine = shapes.random_model("llama", 2, mx.bfloat16).decoder.embed.weight
    assert mx.array_equal(affine.biases, affine.scales * -1.5)  # type: ignore[union-attr]


def test_a_step_reads_all_weights_but_the_table_and_the_cached_rows() -> None:
    model = shapes.random_model("llama", 16, mx.float16)
    table, rows = 256 * 64 * 2, 3 * 2 * 2 * 16 * 100 * 2
    assert read_bytes(model.decoder, 10**6, 100, 16) == 10**6 - table + rows
    assert read_bytes(model.decoder, 10**6, 100, 8) == 10**6 - table + rows // 2
    shared = shapes.random_model("afm", 4, mx.float16)
    # A tied table is read as the head; int8 rows, by the layers that share them too.
    assert read_bytes(shared.decoder, 10**6, 100, 16) == 10**6 + 4 * 2 * 1 * 32 * 100


def test_weights_that_rows_are_multiplied_with() -> None:
    llama, afm = (read_decoder(config) for config in TINY.values())
    layer = 64 * (64 + 2 * 32 + 64 + 3 * 128)
    assert work.step_weights(llama) == 3 * layer + 64 * 256
    # All rows of a prompt stop in the last layer, once its keys and values are there.
    assert work.prefill_weights(llama) == 2 * layer + 64 * 128
    owner, reuser = 64 * (2 * 64 + 2 * 32 + 3 * 256), 64 * (2 * 64 + 3 * 256)
    assert work.step_weights(afm) == 2 * owner + 2 * reuser + 64 * 256
    assert work.prefill_weights(afm) == owner + 64 * 128
    assert work.attention_operations(llama, 10) == 2 * 2 * 10 * 10 * 64


def test_the_7b_shape_has_the_weights_of_llama_2() -> None:
    assert work.step_weights(read_decoder(SHAPES["llama-2-7b"])) == 6_607_077_376
    assert work.packed_bytes(64, 4) == 36 and work.packed_bytes(64, 2, balanced=True) == 18
    assert work.packed_bytes(64, 16) == 128
