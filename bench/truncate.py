"""Plain truncation, the baseline that a lossy prefill has to beat: the middle of the prompt is left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from russet.engine.errors import InvalidOptionError
from russet.engine.prefill.base import Prefilled, PromptTokens
from russet.engine.prefill.exact import Exact


class Truncate:
    """Exact prefill of the first and the last tokens, half of `keep` each, as LongBench truncates (2308.14508).

    The positions close up. The prompt's tail is always kept.
    """

    exact = False

    def __init__(self, keep: float) -> None:
        if not 0 < keep <= 1:
            raise InvalidOptionError(f"truncate keeps {keep:g} of the prompt; it must be above 0 and at most 1.")
        self.name = f"truncate:{keep:g}"
        self.keep = keep

    def __call__(self, decoder: Any, prompt: PromptTokens, cache: Any) -> Prefilled:
        total = len(prompt.tokens)
        kept = math.ceil(self.keep * total)
        end = max(kept - kept // 2, prompt.tail)
        start = min(max(0, kept - end), total - end)
        tokens = [*prompt.tokens[:start], *prompt.tokens[total - end :]]
        found = Exact()(decoder, PromptTokens(tokens, prompt.tail), cache)
        return found if len(tokens) == total else replace(found, exact=False, strategy=self.name)
