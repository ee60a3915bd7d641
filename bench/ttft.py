"""`russet bench ttft`: from a plan to a filled report."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from russet.bench.chips import Chip, detect
from russet.bench.cold_start import mlx_lm_program, run_cold, russet_program
from russet.bench.decode import Listener, rounds
from russet.bench.environment import environment, model_hash
from russet.bench.llama_bench import LlamaBench
from russet.bench.packages import weights_of
from russet.bench.peers import LLAMA_CPP, MLX_LM
from russet.bench.prefill_contenders import contenders as strategies
from russet.bench.prompts import Prompt, check_lengths
from russet.bench.roofline import folder_workload, predict
from russet.bench.ttft_contenders import MlxLmText, RussetText
from russet.bench.ttft_plan import Job, Plan, prompt_for
from russet.bench.ttft_report import Contended, LengthRuns, ModelResult, Predicted, TtftReport
from russet.bench.ttft_run import Run, TextContender
from russet.engine.errors import UnsupportedModelError
from russet.engine.machine import pressure

if TYPE_CHECKING:
    from russet.engine.api import Model


def new_report(plan: Plan) -> TtftReport:
    """An empty report with its stamps."""
    return TtftReport(environment(), dict(plan.settings()))


def fill(
    report: TtftReport,
    plan: Plan,
    jobs: Sequence[Job],
    load: Callable[[str], Model],
    listen: Listener = lambda _: None,
) -> None:
    """Measure one model after the other; what an exception interrupts stays in the report as far as it came."""
    import mlx.core as mx

    chip = detect(report.environment["cpu"], report.environment["gpu_cores"])
    try:
        for job in jobs:
            _measure(report, plan, job, load, chip, listen)
            gc.collect()
            mx.clear_cache()
    finally:
        report.ended = datetime.now(UTC).isoformat(timespec="seconds")
        report.load_average_at_end = os.getloadavg()[0]


def _measure(
    report: TtftReport, plan: Plan, job: Job, load: Callable[[str], Model], chip: Chip | None, listen: Listener
) -> None:
    import mlx.core as mx

    listen(f"loading {job.name}")
    before = mx.get_active_memory()
    model = load(job.model)
    mx.clear_cache()
    weights_bytes = weights_of(model) or mx.get_active_memory() - before
    check_lengths(job.lengths, plan.generate, model.max_positions)
    result = _stamp(job, model)
    report.models.append(result)
    with tempfile.TemporaryDirectory() as documents:
        found = _contenders(plan, job, model, weights_bytes, Path(documents))
        result.contenders.update(
            (each.name, Contended(each.engine, each.prefill, each.setting, each.weights_bytes)) for each in found
        )
        for length in job.lengths:
            prompt = prompt_for(plan, length, model.tokenizer)
            _measure_length(result, plan, job, prompt, found, chip, listen)
    if plan.cold:
        programs = [russet_program(job.folder, plan.dtype)]
        if MLX_LM in plan.peers:
            level = bool(plan.dtype) or report.environment["device"] == "cpu"
            programs.append(mlx_lm_program(job.folder, plan.dtype, level=level))
        run_cold(programs, plan.repeat, result.cold_start, listen)


def _stamp(job: Job, model: Model) -> ModelResult:
    from russet.models.config_file import read_config
    from russet.models.families import family_of
    from russet.models.shapes import parameter_count

    raw, config = read_config(model.files), model.config
    per_token = getattr(model.decoder.new_cache(model.kv_bits), "bytes_per_position", None)
    return ModelResult(
        name=job.name,
        sha256=model_hash(job.folder),
        bits=(raw.get("quantization") or {}).get("bits"),
        parameters=parameter_count(config, family_of(raw).names(config)) if config else None,
        context=model.max_positions,
        kv_bytes_per_token=per_token,
        load_s=model.load_s,
        left_out=list(job.left_out),
    )


def _contenders(plan: Plan, job: Job, model: Model, weights_bytes: int, documents: Path) -> list[TextContender]:
    found: list[TextContender] = [
        RussetText(model, strategy, weights_bytes) for strategy in strategies(plan.prefills, documents, plan.draft)
    ]
    if MLX_LM in plan.peers:
        found.append(MlxLmText(job.folder, plan.dtype))
    if LLAMA_CPP in plan.peers and job.gguf is not None:
        found.append(LlamaBench(job.gguf))
    return found


def _measure_length(
    result: ModelResult,
    plan: Plan,
    job: Job,
    prompt: Prompt,
    found: Sequence[TextContender],
    chip: Chip | None,
    listen: Listener,
) -> None:
    length = len(prompt.tokens)
    held = LengthRuns(length, _prediction(chip, job, length, plan.generate), {each.name: [] for each in found})
    result.lengths.append(held)

    def run(contender: TextContender, tokens: int) -> Run:
        sleep(plan.delay)
        now = pressure()
        return contender.run(prompt, tokens).under(now)

    what = f"{job.name}, {length} tokens"
    for contender, measured in rounds(found, run, generate=plan.generate, repeat=plan.repeat, what=what, listen=listen):
        held.runs[contender.name].append(measured)


def _prediction(chip: Chip | None, job: Job, length: int, generate: int) -> Predicted | None:
    """The roofline's figures for a prompt, and for decoding in the middle of the reply."""
    if chip is None:
        return None
    try:
        work = folder_workload(job.name, job.folder)
    except UnsupportedModelError:
        return None
    decode = predict(work, chip, length + generate // 2).decode_tps
    return Predicted(chip.name, predict(work, chip, length).ttft_s, decode)
