"""The results that are in the repository, and the tables of made-up ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from russet.bench.results_table import BEGIN, END, FOLDER, between_marks, main, read_folder, rendered
from russet.bench.ttft_report import Contended, LengthRuns, ModelResult, Predicted, TtftReport
from russet.bench.ttft_run import Run

MAC = {
    **{"device": "gpu", "cpu": "Apple M3 Max", "cores": 16, "memory_bytes": 64_000_000_000, "gpu": "Apple M3 Max"},
    **{"gpu_cores": 40, "russet": "0.1.0", "git": "0123456789ab"},
}


@pytest.fixture
def report() -> TtftReport:
    runs = {
        "russet exact": [Run(0.5 + i / 10, 0.5, 1000.0, 80.0, 10**9) for i in range(3)],
        "llama.cpp": [Run(None, 1.0, 500.0, 60.0, None)],
    }
    stamps = {"russet exact": Contended("russet", "exact", "float16", 10**9)}
    lengths = [LengthRuns(512, Predicted("M3 Max", 0.4, 100.0), runs)]
    return TtftReport(MAC, {}, models=[ModelResult("q", None, 4, None, 4096, None, 0.1, stamps, lengths=lengths)])


def test_the_repositorys_results_follow_the_schema_and_its_tables_show_them(
    validate: Callable[[dict], None],
) -> None:
    for path in FOLDER.glob("*.json"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        validate(raw)
        assert not raw["interrupted"] and not any("/" in name for name in raw["settings"]["models"])
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert between_marks(readme, rendered(read_folder(FOLDER))) == readme


def test_a_row_a_contender(report: TtftReport) -> None:
    text = rendered({"m3.json": report})
    assert "**q, 4 bits**" in text
    assert (
        "| Apple M3 Max, 40 GPU cores, 64.0 GB | 512 | russet exact | 0.600 ± 0.100 | 1000 ± 0 | 80.0 ± 0.0 | 1.0 GB "
        "| 80% | 80% | 0123456789ab | [m3.json](m3.json) |"
    ) in text
    assert "| 512 | llama.cpp |  | 500 ± 0 | 60.0 ± 0.0 |  | 40% | 60% |" in text


def test_machines_stand_together(report: TtftReport) -> None:
    other = TtftReport({**MAC, "gpu": "Apple M1", "gpu_cores": None, "git": None}, {}, models=report.models)
    rows = [line for line in rendered({"b.json": report, "a.json": other}).splitlines() if "exact" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| Apple M1, 16 cores, 64.0 GB",
        "| Apple M3 Max, 40 GPU cores, 64.0 GB",
    ]
    assert " 0.1.0 " in rows[0]


def test_the_readme_is_written_between_its_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(["--write"], tmp_path)
    assert (tmp_path / "README.md").read_text() == f"before\n{BEGIN}\n\nNo results yet.\n\n{END}\nafter\n"
    main([], tmp_path)
    assert capsys.readouterr().out == "No results yet.\n"
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match="has the schema None"):
        main([], tmp_path)
