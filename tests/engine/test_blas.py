"""The BLAS that serves MLX on Linux: each case in a process of its own, for the choice is made once a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")

REPORT = """
import json, logging, sys
logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
{before}
from russet.engine.blas import use_fast_blas
info = use_fast_blas()
import mlx.core as mx
import numpy as np
a = np.random.default_rng(0).normal(size=(150, 150)).astype(np.float32)
x = mx.array(a)
u, s, vt = mx.linalg.svd(x, stream=mx.cpu)
row, wide = mx.array(a[:1]), mx.array(np.resize(a, (150, 6000)))
errors = [
    np.abs(np.array(mx.matmul(row, wide, stream=mx.cpu)) - a[:1] @ np.array(wide)).max(),
    np.abs(np.array(mx.matmul(row, mx.array(np.array(wide).T.copy()).T, stream=mx.cpu)) - a[:1] @ np.array(wide)).max(),
    np.abs(np.array(mx.matmul(x, x, stream=mx.cpu)) - a @ a).max(),
    np.abs(np.array(mx.matmul(u * s, vt, stream=mx.cpu)) - a).max(),
    np.abs(np.array(mx.matmul(mx.linalg.inv(x, stream=mx.cpu), x, stream=mx.cpu)) - np.eye(150)).max(),
]
print(json.dumps([info.name, str(info.path), info.reason, float(max(errors)), use_fast_blas() is info, info.matvec]))
"""


def report(before: str = "", matvec_forwarded: bool = True, **environment: str) -> tuple[str, str, str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RUSSET_BLAS", "LD_PRELOAD")}
    run = subprocess.run(
        [sys.executable, "-c", REPORT.format(before=before)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    name, path, reason, error, same, matvec = json.loads(run.stdout)
    assert error < 1e-3
    assert same
    assert (matvec == "") is matvec_forwarded if name == "scipy-openblas32" else True
    return name, path, reason, run.stderr


def test_openblas_serves():
    name, path, reason, logged = report()
    assert (name, reason, logged) == ("scipy-openblas32", "", "")
    assert path.endswith("libscipy_openblas.so")


def test_openblas_serves_where_mlx_has_computed_before():
    name, path, _, _ = report("import mlx.core as mx; m = mx.ones((9, 9)); mx.eval(mx.matmul(m, m, stream=mx.cpu))")
    assert name == "scipy-openblas32"
    assert path.endswith("libscipy_openblas.so")


def test_off_keeps_the_library_of_the_wheel():
    name, path, reason, logged = report(RUSSET_BLAS="off")
    assert (name, reason, logged) == ("MLX's own", "RUSSET_BLAS=off", "")
    assert "openblas" not in path


def test_a_chosen_library_goes_first():
    _, openblas, _, _ = report()
    name, path, reason, _ = report(RUSSET_BLAS=openblas)
    assert (name, path, reason) == ("RUSSET_BLAS", openblas, "")


@pytest.mark.parametrize(
    ("library", "reason"), [("/none/libx.so", "No such file"), ("libm.so.6", "does not define cblas_sgemm")]
)
def test_a_chosen_library_that_does_not_serve_is_told_and_passed_over(library, reason):
    name, _, told, logged = report(RUSSET_BLAS=library)
    assert name == "scipy-openblas32"
    assert library in told
    assert reason in told
    assert logged.count(told) == 1


def test_a_library_that_was_put_in_place_before_stays():
    name, _, reason, _ = report("from russet.engine.blas import use_fast_blas as u; u(); u.cache_clear()")
    assert name.startswith("gemv-")
    assert reason == "it was in place before Russet"


def test_without_any_candidate_the_reason_is_told():
    name, path, reason, logged = report(
        "from pathlib import Path\nimport russet.engine.blas as b\nb._candidates = lambda w: [('x', Path('/none.so'))]"
    )
    assert name == "MLX's own"
    assert "openblas" not in path
    assert "/none.so" in reason
    assert "/none.so" in logged


def test_an_unknown_machine_is_left_alone():
    name, _, reason, _ = report("import platform; platform.machine = lambda: 'riscv64'")
    assert name == "MLX's own"
    assert "x86-64 and arm64" in reason


def test_without_a_compiler_one_row_products_stay_with_gemm(tmp_path):
    name, _, reason, logged = report(PATH="/none", CC="", RUSSET_CACHE=str(tmp_path), matvec_forwarded=False)
    assert (name, reason, logged) == ("scipy-openblas32", "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path):
    report(CC="false", RUSSET_CACHE=str(tmp_path), matvec_forwarded=False)
    assert list((tmp_path / "compiled").iterdir()) == []


@pytest.mark.parametrize(
    "way",
    [
        "from russet.models.loading import load_decoder; load_decoder(Path(sys.argv[1]))",
        "from russet.converters.recipes.source import open_source; open_source(Path(sys.argv[1]))",
        "from russet.bench.shapes import random_model; random_model('smollm2-135m', 4)",
    ],
    ids=["loading", "a recipe's source", "a shape"],
)
def test_whatever_computes_has_asked_for_it(way: str, tiny_folder: Path):
    script = f"import sys; from pathlib import Path; {way}; from russet.engine.blas import use_fast_blas as u\n"
    command = [sys.executable, "-c", script + "print(u.cache_info().currsize)", str(tiny_folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
