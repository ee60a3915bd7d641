from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from russet.bench import level_mlx_lm
from russet.bench.as_installed import measure_as_installed
from russet.bench.ours import Russet
from russet.bench.peers import MlxLm, require_peer
from russet.engine.api import load
from russet.engine.errors import MissingDependencyError, PeerError

PROMPT = [72, 101, 108, 108, 111, 32, 87] * 5


def test_a_missing_peer_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_peer("mlx-lm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mlx-lm is not installed.*russet\[mlx-lm\]"):
        require_peer("mlx-lm")


def test_a_folder_that_the_peer_cannot_load_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(PeerError, match=r"mlx-lm cannot load .*; leave out --peer mlx-lm\."):
        MlxLm(tmp_path)


def test_a_peer_that_cannot_be_imported_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(PeerError, match=r"mlx-lm cannot load .*mlx_lm\.utils"):
        MlxLm(tmp_path)


def test_both_draw_the_same_tokens_and_do_not_stop_at_the_end_of_the_reply(folder: Path) -> None:
    ours, theirs = Russet(load(folder), 0), MlxLm(folder)
    one, other = ours.run(PROMPT, 24), theirs.run(PROMPT, 24)
    assert one.tokens == other.tokens
    assert len(one.tokens) == len(one.timings.token_times_s) == 24
    ours.model.tokenizer.eos_ids = frozenset({one.tokens[3]})
    assert ours.run(PROMPT, 24).tokens == one.tokens


@pytest.mark.skipif(mx.default_device().type == mx.DeviceType.gpu, reason="a GPU computes in the folder's own format")
def test_on_a_cpu_the_peer_gets_dense_float32_weights_unless_as_installed(folder: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    convert(str(folder), str(tmp_path / "q8"), quantize=True, q_bits=8, q_group_size=32)
    level = MlxLm(tmp_path / "q8")
    assert level.setting == "float32"
    assert {array.dtype for _, array in flat(level)} == {mx.float32}
    assert mx.uint32 in {array.dtype for _, array in flat(MlxLm(tmp_path / "q8", level=False))}
    ours = Russet(load(tmp_path / "q8"), 0)
    assert ours.run(PROMPT, 16).tokens == level.run(PROMPT, 16).tokens


def flat(contender: MlxLm) -> list:
    from mlx.utils import tree_flatten

    return list(tree_flatten(contender.model.parameters()))


def test_as_installed_is_measured_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    found = measure_as_installed(folder, PROMPT)
    assert len(found.tokens) == 16 and found.timings.decode_tps > 0
    with pytest.raises(PeerError, match=r"as installed failed on .*--no-as-installed\."):
        measure_as_installed(tmp_path, PROMPT)


def test_the_level_program_runs_mlx_lms_own_on_level_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = importlib.import_module("mlx_lm.generate")
    seen = []

    def main() -> None:
        seen.append((sys.argv, program.load(str(folder))[0].model.norm.weight.dtype))

    monkeypatch.setattr(program, "main", main)
    monkeypatch.setattr(program, "load", program.load)
    monkeypatch.setattr(sys, "argv", ["level", "bfloat16", "--model", "m"])
    level_mlx_lm.main()
    assert seen == [(["level", "--model", "m"], mx.bfloat16)]
