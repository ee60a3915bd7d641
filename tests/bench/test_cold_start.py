from __future__ import annotations

import sys
from pathlib import Path

import pytest

from russet.bench import cold_start
from russet.bench.cold_start import (
    ColdRun,
    Program,
    cold_ratios,
    mlx_lm_program,
    run_cold,
    russet_program,
    time_process,
)
from russet.engine.errors import PeerError


def python(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-S", "-c", code))


def test_first_output_and_end_count_from_the_start_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "now", iter([10.0, 11.0, 14.0]).__next__)
    assert time_process(python("p", "print('y' * 1000000)")) == ColdRun(first_output_s=1.0, end_s=4.0)


def test_a_program_that_fails_or_stays_silent_is_named_with_its_last_words() -> None:
    with pytest.raises(PeerError, match=r"exit code 3 \(no such model\)"):
        time_process(python("p", "import sys; print('x'); print('a\\nno such model', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(PeerError, match="it wrote nothing"):
        time_process(python("p", ""))


def test_programs_alternate_and_the_first_run_of_each_is_not_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    programs = [python(n, f"open({str(log)!r}, 'a').write('{n}'); print(1)") for n in "ab"]
    results: dict[str, list[ColdRun]] = {}
    run_cold(programs, 2, results)
    assert log.read_text() == "ab" + "ab" + "ba"
    assert {name: len(runs) for name, runs in results.items()} == {"a": 2, "b": 2}


def test_both_engines_get_the_same_folder_prompt_and_number_of_tokens(tmp_path: Path) -> None:
    programs = [russet_program(tmp_path, "float32"), mlx_lm_program(tmp_path, "float32", level=True)]
    programs.append(mlx_lm_program(tmp_path, None, level=False))
    assert [program.name for program in programs] == ["russet", "mlx-lm", "mlx-lm"]
    for program in programs:
        assert str(tmp_path) in program.arguments and "Why is the sky blue?" in program.arguments
        assert program.arguments[program.arguments.index("--max-tokens") + 1] == "1"
    assert ["float32" in program.arguments for program in programs] == [True, True, False]


def test_cold_starts_are_compared_in_time_so_that_more_is_faster() -> None:
    runs = {"russet": [ColdRun(0.5, 1.0)], "mlx-lm": [ColdRun(2.0, 3.0)]}
    found = cold_ratios(runs, "mlx-lm")
    assert (found["first_output"].median, found["end"].median) == (4.0, 3.0)
    assert cold_ratios(runs, "russet") == {} and cold_ratios({"mlx-lm": runs["mlx-lm"]}, "mlx-lm") == {}
