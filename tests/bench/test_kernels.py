"""The cases of `russet bench kernels`, small and on a CPU, where references run; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner

from russet.bench import kernels, kernels_clock
from russet.bench.kernels_attention import sigmoid_decode, sigmoid_prefill
from russet.bench.kernels_clock import Case, Reached, Side, Timing, time_case
from russet.bench.kernels_layer import attend
from russet.bench.kernels_matvec import added, merged, normed, q2
from russet.bench.kernels_sparse import _threshold, sparse_ffn
from russet.bench.stats import Summary
from russet.engine.cli import main
from russet.engine.errors import InvalidOptionError
from russet.kernels.base import relative_error
from russet.kernels.packed import Format, dense_rows, random_rows

SMALL = {
    "q2 rows 2": lambda: q2(2, 32, 128, 64),
    "q2 a scale a row": lambda: q2(1, 32, 128, 0),
    "qkv 16": lambda: normed(48, 64, 16),
    "qkv 4": lambda: normed(48, 64, 4),
    "gate/up 2": lambda: normed(64, 128, 2, "silu"),
    "down 2": lambda: added(48, 128, 2),
    "out 4": lambda: merged(48, 4, 32, 2, 4),
    "prefill": lambda: sigmoid_prefill(2, 24, 16),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_clock, "_FRESH_BYTES", 1 << 14)
    monkeypatch.setattr(kernels_clock, "_COPY_BYTES", 1 << 14)
    monkeypatch.setattr(kernels_clock, "_LEAST_CALLS", 3)


@pytest.mark.parametrize("name", SMALL)
def test_both_sides_compute_the_same(name: str) -> None:
    sides = SMALL[name]()
    stock = "mlx, plain" if name == "prefill" else "mlx"
    ours, theirs = sides["russet"].calls[0](), sides[stock].calls[0]()
    assert relative_error(theirs.reshape(ours.shape), ours) < 6e-3


@pytest.mark.parametrize("bits", [16, 4, 2])
def test_dense_ffns_are_the_same_on_both_sides(bits: int) -> None:
    sides = sparse_ffn(64, 128, bits, 90)
    ours, theirs = sides["russet, dense"].calls[0](), sides["mlx, dense"].calls[0]()
    assert relative_error(theirs[0], ours) < 6e-3
    assert sides["russet"].calls[0]().shape == ours.shape
    assert sides["russet"].bytes < 0.6 * sides["russet, dense"].bytes


@pytest.mark.parametrize("zeros", [50, 90, 99])
def test_a_threshold_leaves_out_the_share_that_the_case_names(zeros: int) -> None:
    rows, h = random_rows(2048, 64, Format(4, 64, False), mx.float16), mx.random.normal((64,), key=mx.random.key(3))
    gain = mx.ones((64,), dtype=mx.float16)
    threshold = _threshold(h, gain, rows, 1024, zeros)
    gates = mx.maximum(dense_rows(64, *rows)[:1024] @ mx.fast.rms_norm(h, gain.astype(mx.float32), 1e-5), 0)
    assert float(mx.mean((gates <= threshold).astype(mx.float32))) == pytest.approx(zeros / 100, abs=0.03)


def test_bytes_are_those_that_each_side_moves() -> None:
    sides, packed, ends = q2(2, 32, 128, 0), 32 * 128 // 4, 2 * 128 * 2 + 2 * 32 * 2
    assert sides["russet"].bytes == packed + 32 * 2 + ends
    assert sides["mlx"].bytes == packed + 2 * 32 * 2 + ends
    found = attend(4, 2, 32, 40)
    assert found["mlx"].bytes == 2 * 40 * 2 * 32 * 2 + 2 * 4 * 32 * 2
    assert found["russet"].bytes > found["mlx"].bytes
    assert sigmoid_prefill(2, 24, 16)["russet"].operations == 2 * 16 * 2 * 24 * 24
    assert sigmoid_decode(4, 2, 24, 16)["mlx, softmax"].bytes == 2 * 2 * 24 * 16 * 2 + 2 * 4 * 16 * 2


def test_calls_have_weights_of_their_own_that_say_the_same() -> None:
    weights = [mx.arange(64, dtype=mx.uint32), mx.full((4,), 0.5, dtype=mx.bfloat16)]
    sets = kernels_clock.fresh(weights)
    assert len(sets) == (1 << 14) // (64 * 4 + 4 * 2)
    assert all(mx.array_equal(copy[0], weights[0]) and mx.array_equal(copy[1], weights[1]) for copy in sets)
    assert len(kernels_clock.fresh([mx.zeros((1 << 13,))])) == 2
    seen: list[int] = []
    for call in kernels_clock.calls(lambda x: seen.append(int(x.item())) or x, [[mx.array(1)], [mx.array(2)]]):
        call()
    assert seen == [1, 2, 1]


def test_a_copy_reads_and_writes(monkeypatch):
    times = iter([4.0, 2.0, 8.0])
    monkeypatch.setattr(kernels_clock, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(kernels_clock, "_ROUNDS", 3)
    monkeypatch.setattr(kernels_clock, "_seconds", lambda calls: next(times))
    assert kernels_clock.copy_bytes_per_s() == 2 * (1 << 20) / 2.0


def test_sides_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        return Side([lambda: order.append(name) or mx.zeros(())], 8)

    timing = time_case(Case("turns", lambda: {"a": side("a"), "b": side("b")}))
    assert "".join(order) == "ab" + "abba" * 3 + "ab"
    assert [len(found.seconds.values) for found in timing.sides.values()] == [7, 7]


def test_a_kernel_that_is_switched_off_is_named() -> None:
    class Off:
        name, disabled = "q2_tiles", "it does not run"

    timing = time_case(Case("off", lambda: {"russet": Side([lambda: mx.zeros(())], 8, kernels=(Off(),))}))  # type: ignore[arg-type]
    assert timing.sides["russet"].note == "MLX's operations ran in place of q2_tiles: it does not run"


def report() -> kernels.KernelReport:
    machine = {"cpu": "C", "cores": 2, "memory_bytes": 1, "gpu": None, "blas_threads": None, "os": "O", "python": "P"}
    machine |= {"russet": "R", "git": None, "mlx": "M", "mlx-lm": None, "blas": None, "load_average": 1.0}
    ours = Reached(Summary((2e-6, 1e-6, 3e-6)), 2_000_000, 0)
    stock = Reached(Summary((4e-6, 4e-6, 4e-6)), 3_000_000, 8_000_000, "reason")
    return kernels.KernelReport(machine, 4e12, [Timing("q2", {"russet": ours, "mlx": stock})])


def test_the_table_says_what_was_reached() -> None:
    rows = kernels.table(report()).rows
    assert rows[0] == ("q2", "russet", "2.0 (1.0–3.0)", "2.00", "1000", "25%", "", "")
    assert rows[1] == ("q2", "mlx", "4.0 (4.0–4.0)", "3.00", "750", "19%", "2", "2.00x (1.33–4.00)")
    assert "q2: reason." in kernels.notes(report())


def test_json_holds_every_value() -> None:
    side = report().to_dict()["cases"][0]["sides"]["mlx"]
    assert side["seconds"]["values"] == [4e-6] * 3 and side["bytes"] == 3_000_000
    assert (side["bytes_per_s"], side["operations_per_s"]) == pytest.approx((7.5e11, 2e12))
    assert side["of_copy"] == pytest.approx(0.1875)


def test_cases_are_chosen_by_a_part_of_their_names() -> None:
    assert {case.name.split()[0] for case in kernels.all_cases()} == {
        *("q2", "matvec", "layer", "attend", "sparse", "sigmoid")
    }
    chosen = kernels.chosen_cases(["95%", "sigmoid prefill"])
    assert len(chosen) == 4 and all("95%" in case.name or "prefill" in case.name for case in chosen)
    assert len({case.name for case in kernels.all_cases()}) == len(kernels.all_cases())
    with pytest.raises(InvalidOptionError, match="named like 'sprase'; names begin with q2, matvec"):
        kernels.chosen_cases(["sprase"])


def test_a_file_that_cannot_be_written_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "kernels", "--json", str(tmp_path / "no" / "x.json")])
    assert result.exit_code == 1 and "cannot be written" in result.stderr


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "backend", lambda: None)
    result = CliRunner().invoke(main, ["bench", "kernels"], prog_name="russet")
    assert result.exit_code == 1 and "timed on a GPU, and MLX has none here" in result.stderr


def test_the_command_writes_the_table_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "backend", lambda: "cuda")
    monkeypatch.setattr(kernels, "all_cases", lambda: [Case("q2 tiny", SMALL["q2 rows 2"])])
    file = tmp_path / "out.json"
    result = CliRunner().invoke(main, ["bench", "kernels", "--json", str(file)], prog_name="russet")
    assert result.exit_code == 0, result.output
    assert "| q2 tiny | russet |" in result.stdout and "A copy reads and writes" in result.stdout
    assert list(json.loads(file.read_text())["cases"][0]["sides"]) == ["russet", "mlx"]


def test_ctrl_c_shows_what_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> dict[str, Side]:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "backend", lambda: "cuda")
    monkeypatch.setattr(kernels, "all_cases", lambda: [Case("one", SMALL["qkv 4"]), Case("two", interrupted)])
    result = CliRunner().invoke(main, ["bench", "kernels"], prog_name="russet")
    assert result.exit_code == 130
    assert "| one | russet |" in result.stdout and "Interrupted" in result.stdout
