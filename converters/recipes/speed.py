"""How fast source and result read a prompt and write a reply, by turns in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from russet.converters.recipes.listener import Listener

GENERATE = 64
ROUNDS = 5


def measure_speed(
    source: Path, result: Path, prompt: Sequence[int], listener: Listener, predicts: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens a second of source and of result: medians of five runs each, of a prompt and of 64 greedy tokens after it.

    Where `result` is a predictor's folder, it is the source again, whose prompt is predicted. A prompt that leaves no
    room in the context is cut.
    """
    from russet.bench.decode import rounds
    from russet.bench.ours import Russet
    from russet.engine.api import load
    from russet.engine.prefill.kv_prediction import KVPrediction

    first = load(source)
    second = first if predicts else load(result)
    contenders = [Russet(first, 0), Russet(second, 0, KVPrediction(result) if predicts else None)]
    second.load_for(contenders[1].prefill)
    tokens = list(prompt)[: min(model.max_positions for model in (first, second)) - GENERATE]
    found: list[list[tuple[float, float]]] = [[], []]
    turns = rounds(
        contenders,
        lambda contender, count: contender.run(tokens, count),
        generate=GENERATE,
        repeat=ROUNDS,
        what="Timing",
        listen=listener.task,
    )
    for contender, measured in turns:
        times = measured.timings
        found[contenders.index(contender)].append((times.prefill_tps, times.decode_tps))
    before, after = ({"prompt_tokens": len(tokens), **_medians(runs)} for runs in found)
    return before, after


def _medians(runs: Sequence[tuple[float, float]]) -> dict[str, float]:
    prefill, decode = zip(*runs, strict=True)
    return {"prefill_tps": median(prefill), "decode_tps": median(decode)}
