"""Who answers in `russet bench ttft`: Russet with each way to prefill, and its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from russet.bench import prefill_contenders
from russet.bench.base import OURS, measure
from russet.bench.ours import compute_dtype, timed
from russet.bench.peers import MlxLm, mlx_lm_tokenizer
from russet.bench.prompts import Prompt
from russet.bench.ttft_run import Run, from_measurement
from russet.engine.detokenizer import StreamDetokenizer
from russet.engine.errors import PeerError

if TYPE_CHECKING:
    from russet.engine.api import Model
    from russet.engine.tokenizer import Tokenizer

BASELINE = f"{OURS} {prefill_contenders.EXACT}"
"""The contender that every other one is compared with."""


class RussetText:
    """A loaded model under one prefill strategy."""

    engine = OURS

    def __init__(self, model: Model, strategy: prefill_contenders.Contender, weights_bytes: int) -> None:
        self.prefill = strategy.name
        self.name = f"{OURS} {strategy.name}"
        self.setting = compute_dtype(model)
        self.weights_bytes = weights_bytes
        self._model = model
        self._strategy = strategy.prefill
        self._text = _OurText(model.tokenizer)

    def run(self, prompt: Prompt, generate: int) -> Run:
        measured, prefilled = timed(self._model, self._strategy, prompt.text, generate, self.weights_bytes, self._text)
        return replace(
            from_measurement(measured),
            layer_tokens=list(prefilled.work.layer_tokens),
            revived=prefilled.work.revived,
            ran=prefilled.strategy,
            exact=prefilled.exact,
            note=prefilled.note,
        )


class MlxLmText:
    """mlx-lm on the same folder, with its own tokenizer and detokenizer; its weights are levelled as `MlxLm` says."""

    engine = name = "mlx-lm"
    prefill = prefill_contenders.EXACT

    def __init__(self, folder: Path, dtype: str | None) -> None:
        self._mlx_lm = MlxLm(folder, dtype=dtype)
        self._text = _MlxLmText(folder)
        self.setting = self._mlx_lm.setting
        self.weights_bytes = self._mlx_lm.weights_bytes

    def run(self, prompt: Prompt, generate: int) -> Run:
        """Raises PeerError where mlx-lm's tokenizer makes other tokens of the text than Russet's."""
        if self._text.encode(prompt.text) != prompt.tokens:
            raise PeerError(
                f"mlx-lm's tokenizer makes other tokens of the {len(prompt.tokens)} of the prompt than Russet's, so "
                "the two would not do the same work; leave out --peer mlx-lm for this model."
            )
        tokens, weights = self._mlx_lm.tokens, self.weights_bytes
        return from_measurement(measure(prompt.text, lambda ids: tokens(ids, generate), weights, self._text))


class _OurText:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_prompt(text)

    def writer(self) -> Callable[[int], str]:
        return StreamDetokenizer(self._tokenizer).add


class _MlxLmText:
    """As `mlx_lm.generate` reads a prompt and writes a reply."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = mlx_lm_tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        bos = self._tokenizer.bos_token
        return list(self._tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos)))

    def writer(self) -> Callable[[int], str]:
        detokenizer = self._tokenizer.detokenizer

        def write(token: int) -> str:
            detokenizer.add_token(token)
            return detokenizer.last_segment

        return write
