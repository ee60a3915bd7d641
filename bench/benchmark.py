"""`russet bench decode` from a loaded model to a filled report."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from russet.bench import as_installed
from russet.bench.base import Contender
from russet.bench.cold_start import AS_INSTALLED, mlx_lm_programs, run_cold, russet_program
from russet.bench.decode import Listener, run_decode
from russet.bench.environment import environment, model_hash
from russet.bench.ours import Russet
from russet.bench.peers import MlxLm
from russet.bench.prompts import check_lengths, exact_prompt
from russet.bench.report import Report
from russet.engine.api import Model
from russet.engine.device import on_gpu


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `peers` are installed ones of `PEERS`; `as_installed` adds mlx-lm's figures without our BLAS."""

    peers: tuple[str, ...] = ()
    prompt_lengths: tuple[int, ...] = (512, 2048)
    generate: int = 128
    repeat: int = 5
    cold: bool = False
    as_installed: bool = True
    dtype: str | None = None


def new_report(model: Model, plan: Plan) -> Report:
    """An empty report with its stamps. Raises InvalidOptionError where a prompt would not fit in the context."""
    check_lengths(plan.prompt_lengths, plan.generate, model.max_positions)
    stamp = {"name": model.name, "sha256": model_hash(model.path)}
    return Report(model=stamp, environment=environment(), settings=asdict(plan), contenders={})


def fill(report: Report, model: Model, weights_bytes: int, plan: Plan, listen: Listener = lambda _: None) -> None:
    """Measure all that is planned; what an exception interrupts stays in the report as far as it came."""
    prompts = [exact_prompt(model.tokenizer, length) for length in plan.prompt_lengths]
    contenders: list[Contender] = [Russet(model, weights_bytes)]
    if "mlx-lm" in plan.peers:
        listen("loading mlx-lm")
        contenders.append(MlxLm(model.path, dtype=plan.dtype))
    report.contenders.update((contender.name, contender.setting) for contender in contenders)
    run_decode(contenders, prompts, generate=plan.generate, repeat=plan.repeat, results=report.lengths, listen=listen)
    if plan.as_installed and "mlx-lm" in plan.peers and _replaces_blas():
        _add_as_installed(report, model, plan, listen)
    if plan.cold:
        programs = [russet_program(model.path, plan.dtype)]
        if "mlx-lm" in plan.peers:
            peers = mlx_lm_programs(model.path, plan.dtype, level=bool(plan.dtype) or not on_gpu())
            programs += [program for program in peers if plan.as_installed or program.name != AS_INSTALLED]
        run_cold(programs, plan.repeat, report.cold_start, listen)


def _replaces_blas() -> bool:
    return sys.platform == "linux" and not on_gpu()


def _add_as_installed(report: Report, model: Model, plan: Plan, listen: Listener) -> None:
    listen("mlx-lm as installed")
    prompt = exact_prompt(model.tokenizer, min(as_installed.PROMPT_TOKENS, *plan.prompt_lengths))
    report.as_installed_prompt_tokens = len(prompt.tokens)
    report.as_installed = as_installed.measure_as_installed(model.path, prompt.tokens)
