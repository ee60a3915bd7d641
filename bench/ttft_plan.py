"""What `russet bench ttft` is to measure. Everything that can be refused is refused here, before a model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from russet.bench import prompts
from russet.bench.memory_estimate import available_bytes, check_memory, estimate
from russet.bench.model_names import short_names
from russet.bench.peers import IN_PROCESS, MLX_LM
from russet.bench.prefill_contenders import contenders as strategies
from russet.bench.prompts import Prompt

if TYPE_CHECKING:
    from russet.engine.tokenizer import Tokenizer

PROMPT_LENGTHS = (128, 512, 2048, 8192)
"""Of these, unless others are asked for, the ones that fit in the model's context."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `text` is cut to the prompt lengths, or taken whole where it is given and they are not.

    `prefills` are names of strategies; exact prefill is always among them. `gguf` has a file for each model, for
    llama.cpp. `delay` is in seconds and passes before every run.
    """

    models: tuple[str, ...]
    prefills: tuple[str, ...] = ("exact",)
    peers: tuple[str, ...] = ()
    prompt_lengths: tuple[int, ...] | None = None
    prompt_file: str | None = None
    text: str | None = None
    generate: int = 128
    repeat: int = 5
    delay: float = 0.0
    cold: bool = False
    dtype: str | None = None
    draft: str | None = None
    gguf: tuple[Path, ...] = ()

    def settings(self) -> dict[str, object]:
        """For the report, which names no folders of this machine; of the prompt's text its source and hash."""
        text = prompts.book() if self.text is None else self.text
        prompt = {"file": self.prompt_file, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        found = {key: value for key, value in asdict(self).items() if key not in ("text", "prompt_file", "gguf")}
        models = list(short_names(self.models).values())
        return {**found, "models": models, "gguf": [file.name for file in self.gguf], "prompt": prompt}


@dataclass(frozen=True, slots=True)
class Job:
    """A model that was looked at and fits: what was asked for, its name in the report and its folder, and the prompt
    lengths that are measured and left out."""

    model: str
    name: str
    folder: Path
    lengths: tuple[int, ...]
    left_out: tuple[int, ...]
    gguf: Path | None


def prepare(plan: Plan, resolve: Callable[[str], Path]) -> list[Job]:
    """Find every model and check that all runs fit.

    Raises InvalidOptionError for prefill modes that there are not and lengths over a model's context, and
    InsufficientMemoryError.
    """
    # Built to be checked: a wrong name or setting is told before anything else is done.
    strategies(plan.prefills, Path())
    jobs = [_job(plan, number, resolve(name)) for number, name in enumerate(plan.models)]
    available = available_bytes()
    peers = sum(peer in IN_PROCESS for peer in plan.peers)
    for job in jobs:
        check_memory(job.name, estimate(job.folder, max(job.lengths) + plan.generate, plan.dtype, peers), available)
    return jobs


def _job(plan: Plan, number: int, folder: Path) -> Job:
    from russet.models.config_file import read_config
    from russet.models.families import FAMILIES, read_decoder
    from russet.models.opening import description_folder, eos_tokens

    files = description_folder(folder)
    raw = read_config(files)
    ours = raw.get("model_type") in FAMILIES
    context = read_decoder(raw).max_positions if ours else int(raw.get("max_position_embeddings", 2**31))
    lengths, left_out = plan.prompt_lengths, ()
    if lengths is None and plan.text is not None:
        from russet.engine.tokenizer import load_tokenizer

        lengths = (len(load_tokenizer(files, eos_tokens(files)).encode_prompt(plan.text)),)
    if lengths is None:
        lengths = tuple(length for length in PROMPT_LENGTHS if length + plan.generate <= context)
        left_out = tuple(length for length in PROMPT_LENGTHS if length not in lengths)
        lengths = lengths or PROMPT_LENGTHS[:1]
    prompts.check_lengths(lengths, plan.generate, context)
    model = plan.models[number]
    return Job(
        model, short_names(plan.models)[model], folder, lengths, left_out, plan.gguf[number] if plan.gguf else None
    )


def prompt_for(plan: Plan, length: int, tokenizer: Tokenizer) -> Prompt:
    """The prompt of a length in tokens, or the whole text where that is what is measured."""
    if plan.text is not None and plan.prompt_lengths is None:
        return Prompt(plan.text, tokenizer.encode_prompt(plan.text))
    return prompts.exact_prompt(tokenizer, length, plan.text)


def steps(plan: Plan, jobs: Sequence[Job]) -> int:
    """How many times `fill` in ttft.py tells its listener what comes next."""
    contenders = len(dict.fromkeys(("exact", *plan.prefills))) + len(plan.peers)
    programs = (1 + (MLX_LM in plan.peers)) if plan.cold else 0
    each = 1 + plan.repeat
    return sum(1 + each * (contenders * len(job.lengths) + programs) for job in jobs)
