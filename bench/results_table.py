"""Tables of the results that bench/results/ holds, a JSON of `russet bench ttft` a machine.

python -m russet.bench.results_table           prints them
python -m russet.bench.results_table --write   puts them into bench/results/README.md, between its two marks
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from russet.bench import drawing
from russet.bench.cells import seconds_cell
from russet.bench.drawing import Table
from russet.bench.stats import Summary
from russet.bench.ttft_report import LengthRuns, ModelResult, TtftReport, read_report, summaries
from russet.engine.errors import RussetError
from russet.engine.storage import readable_bytes

FOLDER = Path(__file__).with_name("results")

BEGIN, END = "<!-- results: made by python -m russet.bench.results_table --write -->", "<!-- end of results -->"

HEADER = (
    *("machine", "prompt", "contender", "TTFT s", "prefill tok/s", "decode tok/s", "peak memory"),
    *("of predicted prefill", "decode", "Russet", "file"),
)

EMPTY = "No results yet."


def tables(reports: dict[str, TtftReport]) -> list[Table]:
    """File name -> report, as tables: one a model, machines in the order of their names."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for file, report in sorted(reports.items(), key=lambda pair: (machine(pair[1]), pair[0])):
        for model in report.finished:
            rows.setdefault(_title(model), []).extend(_rows(file, report, model))
    return [Table(title, HEADER, tuple(found)) for title, found in sorted(rows.items())]


def _title(model: ModelResult) -> str:
    return f"{model.name}, {model.bits} bits" if model.bits else f"{model.name}, 16 bits or more"


def machine(report: TtftReport) -> str:
    """Chip or GPU, its GPU cores where they are known, else the processor's cores, and the memory."""
    found = report.environment
    chip = found["gpu"] or found["cpu"] or "unknown"
    cores = f"{found['gpu_cores']} GPU cores" if found["gpu_cores"] else f"{found['cores']} cores"
    return f"{chip}, {cores}, {readable_bytes(found['memory_bytes'])}"


def _rows(file: str, report: TtftReport, model: ModelResult) -> Iterator[tuple[str, ...]]:
    for held in model.finished:
        for name in held.finished:
            found = summaries(held.runs[name])
            yield (
                *(machine(report), str(held.prompt_tokens), name),
                _seconds(found.get("ttft_s")),
                *(_cell(found.get(key), digits) for key, digits in (("prefill_tps", 0), ("decode_tps", 1))),
                readable_bytes(found["peak_memory_bytes"].highest) if "peak_memory_bytes" in found else "",
                *_shares(held, name),
                report.environment["git"] or report.environment["russet"],
                f"[{file}]({file})",
            )


def _shares(held: LengthRuns, name: str) -> tuple[str, str]:
    shares = held.roofline_share(name) or {}
    prefill, decode = (f"{shares[key]:.0%}" if key in shares else "" for key in ("prefill", "decode"))
    return prefill, decode


def _seconds(found: Summary | None) -> str:
    return "" if found is None else f"{seconds_cell(found.median)} ± {seconds_cell(found.stdev, found.median)}"


def _cell(found: Summary | None, digits: int) -> str:
    return "" if found is None else f"{found.median:.{digits}f} ± {found.stdev:.{digits}f}"


def read_folder(folder: Path) -> dict[str, TtftReport]:
    """Every JSON in a folder, by file name. Raises BenchmarkDataError for one that is no report."""
    return {path.name: read_report(path) for path in sorted(folder.glob("*.json"))}


def rendered(reports: dict[str, TtftReport]) -> str:
    """The tables as Markdown."""
    return drawing.markdown(tables(reports), []).rstrip() if reports else EMPTY


def between_marks(text: str, new: str) -> str:
    """`text` with what is between the marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> None:
    parser = argparse.ArgumentParser(description="Render the results in bench/results/.")
    parser.add_argument("--write", action="store_true", help="put the tables into bench/results/README.md")
    options = parser.parse_args(arguments)
    try:
        text = rendered(read_folder(folder))
    except RussetError as error:
        sys.exit(f"russet: {error}")
    if options.write:
        readme = folder / "README.md"
        readme.write_text(between_marks(readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
