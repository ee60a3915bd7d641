"""The walk through all variants, with kernels whose checks are made up: there is no GPU here."""

from __future__ import annotations

import json

import pytest

from russet.kernels import every_variant
from russet.kernels.base import Check, variant_name
from russet.kernels.every_variant import check_all, main
from russet.kernels.registry import every_form, kernels


class Made:
    """A kernel with three examples, two of which launch the same variant."""

    def __init__(self, name: str, reason: str = "") -> None:
        self.name, self.reason = name, reason

    def examples(self, target):
        assert target == "metal"
        yield from ([1], [2], [2])

    def check(self, inputs, target):
        failed = self.reason if inputs == [2] else ""
        return Check(f"T={inputs[0]}", None if failed else inputs[0] * 1e-4, failed)


def test_every_variant_is_checked_and_a_failure_does_not_stop_the_rest():
    found = list(check_all([Made("broken", "no such name"), Made("sound")], "metal"))
    assert [[check.variant for check in one.checks] for one in found] == [["T=1", "T=2"]] * 2
    assert [len(one.failures) for one in found] == [1, 0]
    assert found[0].row.startswith("| broken | 1 of 2 | 1.0e-04 |") and found[1].row.startswith(
        "| sound | 2 of 2 | 2.0e-04"
    )


def test_forms_of_one_operation_are_taken_together():
    (one,) = check_all([Made("alike", "no such name"), Made("alike")], "metal")
    assert [check.variant for check in one.checks] == ["T=1", "T=2"] and len(one.failures) == 1


def test_every_packing_of_the_decode_step_is_among_them():
    names = {variant_name(kernel.launch("metal", *inputs), inputs) for kernel, inputs in of("residual_matvec")}
    for packing in (
        "BITS=2 G=0 BALANCED=1",
        "BITS=2 G=64 BALANCED=1",
        "BITS=2 G=32",
        "BITS=4 G=128",
        "BITS=8",
        "BITS=16",
    ):
        assert any(packing in name for name in names), packing
    assert {name.split()[0] for name in names} == {"T=float16", "T=bfloat16", "T=float32"}
    assert {kernel.name for kernel in every_form()} == {kernel.name for kernel in kernels()}


def of(name):
    return [(kernel, inputs) for kernel in every_form() if kernel.name == name for inputs in kernel.examples("metal")]


def test_the_command_tells_failures_and_fails(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(every_variant, "backend", lambda: "metal")
    monkeypatch.setattr(every_variant, "every_form", lambda: [Made("sound"), Made("broken", "no such name")])
    with pytest.raises(SystemExit) as stopped:
        main(["--json", str(tmp_path / "found.json")])
    assert stopped.value.code == 1
    assert capsys.readouterr().out.endswith("\nbroken T=2: no such name\n")
    raw = json.loads((tmp_path / "found.json").read_text())
    assert [one["kernel"] for one in raw] == ["sound", "broken"] and raw[1]["checks"][1]["reason"] == "no such name"
    monkeypatch.setattr(every_variant, "every_form", lambda: [Made("sound")])
    main([])


def test_without_a_gpu_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setattr(every_variant, "backend", lambda: None)
    with pytest.raises(SystemExit, match="MLX computes on a CPU here"):
        main([])
