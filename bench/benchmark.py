"""`russet bench decode` from a loaded model to a filled report."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from russet.bench import as_installed
from russet.bench.decode import Listener, run_decode
from russet.bench.environment import environment, model_hash
from russet.bench.kernels_clock import copy_bytes_per_s
from russet.bench.ours import Russet
from russet.bench.packages import PackageChoice, package_contender
from russet.bench.peers import MlxLm
from russet.bench.prompts import Prompt, check_lengths, exact_prompt
from russet.bench.report import Report
from russet.bench.shapes import MlxLmShape, ShapeModel, random_prompt
from russet.bench.step import read_bytes, step_cost
from russet.engine.api import Model
from russet.engine.device import on_gpu
from russet.models.decoder import Decoder
from russet.models.loading import DTYPES
from russet.models.runtimes.base import PackageDecoder


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `peers` are installed ones of `PEERS`, `packages` exported models (`PATH` or `PATH@UNITS`).

    `as_installed` adds mlx-lm's figures without our BLAS. `shape` and `bits` name a model of random weights, of which
    mlx-lm as installed is not timed.
    """

    peers: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    prompt_lengths: tuple[int, ...] = (512, 2048)
    generate: int = 128
    repeat: int = 5
    as_installed: bool = True
    dtype: str | None = None
    shape: str | None = None
    bits: int | None = None


def new_report(model: Model | ShapeModel, plan: Plan) -> Report:
    """An empty report with its stamps. Raises InvalidOptionError where a prompt would not fit in the context."""
    check_lengths(plan.prompt_lengths, plan.generate, model.max_positions)
    stamp = {"name": model.name, "sha256": model_hash(model.path) if isinstance(model, Model) else None}
    return Report(model=stamp, environment=environment(), settings=asdict(plan), contenders={})


def fill(
    report: Report, model: Model | ShapeModel, weights_bytes: int, plan: Plan, listen: Listener = lambda _: None
) -> None:
    """Measure all that is planned; what an exception interrupts stays in the report as far as it came."""
    prompts = [_prompt(model, length) for length in plan.prompt_lengths]
    contenders: list[Russet | MlxLm] = [Russet(model, weights_bytes)]
    if "mlx-lm" in plan.peers:
        listen("loading mlx-lm")
        contenders.append(_mlx_lm(model, plan))
    for text in plan.packages:
        listen(f"loading {text}")
        positions = max(plan.prompt_lengths) + plan.generate
        contenders.append(package_contender(PackageChoice.parse(text), model.vocab_size, positions))
    report.contenders.update((contender.name, contender.setting) for contender in contenders)
    _add_step_costs(report, model, contenders, plan, listen)
    run_decode(contenders, prompts, generate=plan.generate, repeat=plan.repeat, results=report.lengths, listen=listen)
    if isinstance(model, ShapeModel):
        return
    if plan.as_installed and "mlx-lm" in plan.peers and _replaces_blas():
        _add_as_installed(report, model, plan, listen)


def _prompt(model: Model | ShapeModel, length: int) -> Prompt:
    if isinstance(model, ShapeModel):
        return Prompt("", random_prompt(length, model.vocab_size))
    return exact_prompt(model.tokenizer, length)


def _mlx_lm(model: Model | ShapeModel, plan: Plan) -> MlxLm:
    if isinstance(model, Model):
        return MlxLm(model.path, dtype=plan.dtype)
    assert plan.shape is not None and plan.bits is not None
    return MlxLmShape(plan.shape, plan.bits, DTYPES[plan.dtype] if plan.dtype else None)


def _add_step_costs(
    report: Report, model: Model | ShapeModel, contenders: list[Russet | MlxLm], plan: Plan, listen: Listener
) -> None:
    """Count operations of a step, and the bytes that it reads in the middle of a run; on a GPU a copy is timed too."""
    for contender in contenders:
        if isinstance(contender, Russet) and isinstance(contender.model.decoder, PackageDecoder):
            continue  # its graph is another runtime's
        listen(f"counting operations, {contender.name}")
        cost = step_cost(contender, contender.weights_bytes)
        if isinstance(model.decoder, Decoder):
            for length in plan.prompt_lengths:
                middle = length + plan.generate // 2
                cost.read_bytes[length] = read_bytes(model.decoder, cost.weights_bytes, middle, model.kv_bits)
        report.steps[contender.name] = cost
    if on_gpu():
        report.copy_bytes_per_s = copy_bytes_per_s()


def _replaces_blas() -> bool:
    return sys.platform == "linux" and not on_gpu()


def _add_as_installed(report: Report, model: Model, plan: Plan, listen: Listener) -> None:
    listen("mlx-lm as installed")
    prompt = exact_prompt(model.tokenizer, min(as_installed.PROMPT_TOKENS, *plan.prompt_lengths))
    report.as_installed_prompt_tokens = len(prompt.tokens)
    report.as_installed = as_installed.measure_as_installed(model.path, prompt.tokens)
