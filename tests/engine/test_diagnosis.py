from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from russet.engine import device, diagnosis
from russet.engine.cli.doctor import command
from russet.engine.diagnosis import cpu_speed, diagnose
from russet.kernels import base, registry, report
from russet.kernels.base import Check
from russet.kernels.report import Report
from russet.models import crossovers


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("RUSSET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(diagnosis, "cpu_speed", lambda: (123.4, 5.6))
    monkeypatch.setattr(report, "backend", lambda: None)  # on a GPU every diagnosis would time the kernels


def values() -> dict:
    return {finding.key: finding.value for finding in diagnose()}


def test_a_sound_machine_has_no_problems(tmp_path):
    assert [finding.problem for finding in diagnose() if finding.problem] == []
    found = values()
    first = ["python", "russet", "mlx", "device", "dtype", "blas", "kernels", "expansion"]
    assert list(found) == [*first, "cache", "models", "prefixes", "extras"]
    assert found["blas"]["matmul_gflops"] == 123.4
    assert found["cache"] | {"free_bytes": 0} == {"path": str(tmp_path / "cache"), "writable": True, "free_bytes": 0}
    assert found["models"] == []
    # What BLAS needs compiled is kept; a diagnosis leaves nothing else behind.
    assert [path.name for path in (tmp_path / "cache").glob("*")] in ([], ["compiled"])


def test_a_cuda_build_that_does_not_serve_is_a_problem(monkeypatch):
    version = diagnosis._version
    monkeypatch.setattr(diagnosis, "_version", lambda name: "0.32.4" if name == "mlx-cuda-13" else version(name))
    (problem,) = [finding.problem for finding in diagnose() if finding.problem]
    assert "--force-reinstall --no-deps mlx-cuda-13" in problem


def test_the_speed_is_measured():
    assert all(speed > 0 for speed in cpu_speed())


def test_prefix_caches_are_measured(tmp_path):
    folder = tmp_path / "cache" / "prefixes"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"x" * 1500)
    (finding,) = [finding for finding in diagnose() if finding.key == "prefixes"]
    assert finding.value == {str(folder): 1500}
    assert finding.text == f"1.5 kB in {folder}, at most 4.0 GB each; delete a folder to clear it"


def test_json_holds_every_finding():
    run = CliRunner().invoke(command, ["--json"])
    assert run.exit_code == 0
    report = json.loads(run.stdout)
    assert report["problems"] == []
    assert report["device"]["kind"] in ("cpu", "gpu")


def test_other_programs_get_a_line_a_finding():
    run = CliRunner().invoke(command)
    assert run.exit_code == 0
    fields = [line.split("\t") for line in run.stdout.splitlines()]
    assert [len(field) for field in fields] == [2] * 12
    assert "123 GFLOP/s in matrix products, 6 GB/s" in dict(fields)["blas"]


def test_kernels_say_what_their_check_found(monkeypatch):
    checks = (Check("T=float16", 2e-4), Check("T=float32", 3e-7))
    sound = Report("fast", True, True, "", checks, 9, 12.04e-6, 35e-6)
    broken = Report("broken", False, False, "it does not run: no such name", (Check("T=float16", None),), 3)
    monkeypatch.setattr(report, "reports", lambda: [sound, broken])
    found = next(finding for finding in diagnose() if finding.key == "kernels")
    assert found.text == "1 of 2 serve"
    header, *rows = found.table
    assert dict(zip(header, rows[0], strict=True)) == {
        "kernel": "fast",
        "simulated": "yes",
        "variants checked": "2 of 9",
        "error": "2.0e-04",
        "Russet": "12.0 us",
        "MLX": "35.0 us",
        "serves": "yes",
    }
    assert rows[1] == ("broken", "no", "1 of 3", "", "", "", "no: it does not run: no such name")
    assert found.value[0]["checks"][0] == {"variant": "T=float16", "error": 2e-4, "reason": ""}
    assert (found.value[0]["error"], found.value[0]["mlx_s"]) == (2e-4, 35e-6)
    assert found.value[1]["serves"] is False
    assert found.problem == ""
    run = CliRunner().invoke(command)
    assert "kernels\t1 of 2 serve\n" in run.stdout
    assert run.stdout.endswith("\n\n" + "\t".join(rows[0]) + "\n" + "\t".join(rows[1]) + "\n")
    assert json.loads(CliRunner().invoke(command, ["--json"]).stdout)["kernels"][0]["russet_s"] == 12.04e-6


def test_kernels_without_a_gpu_take_one_word():
    found = next(finding for finding in diagnose() if finding.key == "kernels")
    assert found.text == "none: MLX computes on a CPU here"
    assert found.table == ()
    assert [kernel["name"] for kernel in found.value] == [kernel.name for kernel in registry.kernels()]


def test_the_rows_from_which_weights_are_expanded(monkeypatch):
    def text() -> str:
        return diagnosis._expansion().text

    assert text() == "a CPU expands weights when it loads them"
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    monkeypatch.setattr(base, "mode", lambda: "on")
    monkeypatch.setattr(crossovers, "device_key", lambda: "a GPU")
    assert text() == "not measured yet: the first long prompt measures it"
    kind = crossovers.Kind(4, 64, "float16", 4**12)
    crossovers.Crossovers("a GPU")[kind] = 320
    assert text() == "4 bits from 320 rows on"
    assert diagnosis._expansion().value == {"4 bits, groups of 64, float16, 16777216 weights": 320}
    monkeypatch.setattr(base, "mode", lambda: "off")
    assert text() == "off, since RUSSET_KERNELS is off"


def test_an_unwritable_cache_is_a_problem(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    (tmp_path / "cache").chmod(0o755)
    run = CliRunner().invoke(command)
    assert run.exit_code == 1
    assert run.stderr == (
        f"russet: {tmp_path / 'cache'} cannot be written: mend that, or set RUSSET_CACHE to a folder that can.\n"
    )


def test_what_is_set_wrongly_is_told_in_its_own_words(monkeypatch):
    monkeypatch.setenv("RUSSET_KERNELS", "yes")
    base.mode.cache_clear()
    try:
        run = CliRunner().invoke(command)
    finally:
        base.mode.cache_clear()
    assert run.exit_code == 1
    assert run.stderr == "russet: RUSSET_KERNELS is 'yes': set it to on, reference or off.\n"


def test_a_broken_part_does_not_hide_the_others(monkeypatch):
    def _mlx():
        raise ImportError("libmlx.so: cannot open shared object file")

    monkeypatch.setattr(diagnosis, "_CHECKS", (_mlx, diagnosis._extras))
    run = CliRunner().invoke(command, ["--json"])
    assert run.exit_code == 1
    report = json.loads(run.stdout)
    assert report["problems"] == ["The check of mlx failed (ImportError: libmlx.so: cannot open shared object file)."]
    assert "mlx-lm" in report["extras"]
