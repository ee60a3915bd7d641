"""Decode through Apple's Core AI runtime, which runs on Linux (on the CPU) as well as on a Mac."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from russet.engine.errors import CheckpointError
from russet.models.runtimes import coreai_bundle as names
from russet.models.runtimes.base import PackageDecoder, StateCache
from russet.models.runtimes.coreai_bundle import check_model, description_of, read_bundle
from russet.models.runtimes.coreai_runner import CoreAIRunner, array, of_the_system

_logger = logging.getLogger("russet")

GROWTH = 256
"""Rows by which a state grows: a CPU copies the whole of it at every call."""

files = description_of


def load(path: Path, compute_units: str | None) -> CoreAIDecoder:
    """The decoder of a bundle, or of the .aimodel in one."""
    decoder = CoreAIDecoder(path, compute_units)
    if decoder.computes_in is np.float16 and not of_the_system():
        _logger.warning(
            "%s computes in float16, which Apple's runtime on a CPU has only slow code for; convert the model with "
            "--weights float32 to generate here",
            path.name,
        )
    return decoder


class GrowingState(StateCache):
    """Keys and values in the runtime's hands, [slots, 1, kv_heads, capacity, head_dim] each."""

    def __init__(self, shape: list[int | None], dtype: type[np.generic], most: int) -> None:
        super().__init__({})
        self._shape, self._dtype, self._most = shape, dtype, most
        self.capacity = 0
        self.reserve(1)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in total."""
        if rows <= self.capacity:
            return
        capacity = min(-(-rows // GROWTH) * GROWTH, self._most)
        for name in (names.KEYS, names.VALUES):
            grown = np.zeros([capacity if size is None else size for size in self._shape], dtype=self._dtype)
            if self.capacity:
                grown[:, :, :, : self.next_position] = self.state[name].numpy()[:, :, :, : self.next_position]
            self.state[name] = array(grown)
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        return sum(held.numpy().nbytes for held in self.state.values())


class CoreAIDecoder(PackageDecoder):
    """A model of `russet convert --to coreai`; calls take any number of tokens."""

    def __init__(self, path: Path, compute_units: str | None) -> None:
        bundle = read_bundle(path)
        check_model(bundle.model)
        self.chunk, self.max_positions, self.vocab_size = bundle.chunk, bundle.context, bundle.vocab_size
        self.runtime = f"Apple's Core AI runtime{f' on {compute_units}' if compute_units else ''}"
        self._off_cpu = of_the_system()
        self._runner = CoreAIRunner(bundle.model, compute_units)
        if names.MAIN not in self._runner.functions:
            raise CheckpointError(f"{bundle.model} has no function {names.MAIN!r}; convert the model again.")
        self._shape, dtype = self._runner.state_type(names.MAIN, names.KEYS)
        self.computes_in = np.dtype(dtype).type

    def make_state(self) -> GrowingState:
        return GrowingState(self._shape, self.computes_in, self.max_positions)

    def new_cache(self, kv_bits: int = 16) -> GrowingState:
        self.refuse_kv_bits(kv_bits)
        return self.make_state()

    def extend(self, tokens: mx.array, cache: Any, logits: int = 1) -> mx.array | None:
        cache.reserve(cache.next_position + tokens.shape[1])
        return super().extend(tokens, cache, logits)

    def run(self, tokens: np.ndarray, position: int, state: Any) -> np.ndarray:
        inputs = {
            names.TOKENS: tokens[None].astype(np.int32),
            names.POSITIONS: np.arange(position + len(tokens), dtype=np.int32)[None],
        }
        return self._runner.run(self._function(len(tokens)), inputs, state)[names.LOGITS][0, -1]

    def close(self) -> None:
        """Let go of the model; it cannot be used any more."""
        self._runner.close()

    def _function(self, count: int) -> str:
        """`prefill` where it is there; off the CPU, one token goes to the function whose state is written in place."""
        if names.PREFILL not in self._runner.functions or (count == 1 and self._off_cpu):
            return names.MAIN
        return names.PREFILL
