"""A function of a package: inputs, the layers of one part over their state, and an output.

Engine layout: `prefill` takes a chunk of tokens and `decode` one, both at a `position`, and return the logits of one
row; `lastRow` of `prefill` says which. Layers after the last one that writes keys and values see that row only, as in
the engine's own decoder. Where a model is cut into several packages, rows go from one to the next as `hidden`.

Swift layout: `main` takes any number of tokens and a mask, as Hugging Face's Swift client calls it, and returns the
logits of every row. The mask's length says how many positions there are; its values are not used. That client counts
one position too many, so the first slot is left empty, and counts as unseen as long as it holds no key.
"""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Function, get_new_symbol, types
from coremltools.converters.mil.mil.program import Placeholder, StateTensorPlaceholder

from russet.converters.coreml.bank import Bank, Var
from russet.converters.coreml.builder import mb
from russet.converters.coreml.layers import Block, State, residual_scale, rms_norm
from russet.converters.coreml.plan import Part, Plan
from russet.converters.coreml.rows import Rows, ints
from russet.models.runtimes.coreml_package import (
    KEYS,
    LAST_ROW,
    LOGITS,
    MASK,
    POSITION,
    ROWS_IN,
    ROWS_OUT,
    TOKENS,
    VALUES,
)


class Graph:
    """Emits the functions of one part."""

    def __init__(self, plan: Plan, part: Part, bank: Bank) -> None:
        self.plan = plan
        self.part = part
        self.bank = bank
        self.config = plan.config

    def engine_function(self, count: int) -> Function:
        """A function of the engine layout that takes `count` rows at a time."""
        inputs: dict[str, Any] = {}
        if self.part.first:
            inputs[TOKENS] = Placeholder((1, count), dtype=types.int32, name=TOKENS)
        else:
            inputs[ROWS_IN] = Placeholder((1, count, self.config.hidden_dim), dtype=types.fp16, name=ROWS_IN)
        inputs[POSITION] = Placeholder((1,), dtype=types.int32, name=POSITION)
        cuts = count > 1 and self.config.last_writer in self.part.layers
        if cuts:
            inputs[LAST_ROW] = Placeholder((1,), dtype=types.int32, name=LAST_ROW)
        with self._function(inputs) as function:
            begin = function.inputs[POSITION]
            rows = self._rows(count, begin, mb.add(x=begin, y=ints(count)))
            last = function.inputs[LAST_ROW] if cuts else None
            self._finish(function, self._layers(self._entry(function), rows, self._state(function), last))
        return function

    def swift_function(self) -> Function:
        """The function of the swift layout."""
        context = self.plan.context
        inputs = {
            TOKENS: Placeholder((1, get_new_symbol()), dtype=types.int32, name=TOKENS),
            MASK: Placeholder((1, 1, get_new_symbol(), get_new_symbol()), dtype=types.fp16, name=MASK),
        }
        with self._function(inputs) as function:
            count = mb.slice_by_size(x=mb.shape(x=function.inputs[TOKENS]), begin=[1], size=[1])
            end = mb.slice_by_size(x=mb.shape(x=function.inputs[MASK]), begin=[3], size=[1])
            rows = self._rows(None, mb.sub(x=end, y=count), end)
            self._finish(function, self._layers(self._entry(function), rows, self._state(function), None))
        length, queries, total = (ct.RangeDim(1, context, default=1) for _ in range(3))
        function.set_input_types(
            (  # pyright: ignore[reportArgumentType]
                ct.TensorType(TOKENS, (1, length), dtype=np.int32),
                ct.TensorType(MASK, (1, 1, queries, total), dtype=np.float16),
            )
        )
        return function

    def _function(self, inputs: dict[str, Any]) -> Function:
        """An empty function with the part's states among its inputs."""
        self.bank.start_function()
        specs = [self.config.layers[i] for i in self._owners()]
        shape = (1, sum(spec.kv_heads for spec in specs), self.plan.context, specs[0].head_dim)
        states = {name: StateTensorPlaceholder(shape, dtype=types.fp16, name=name) for name in (KEYS, VALUES)}
        return Function({**inputs, **states}, opset_version=ct.target.iOS18)

    def _owners(self) -> list[int]:
        return [i for i in self.part.layers if self.config.layers[i].kv_source is None]

    def _state(self, function: Function) -> State:
        keys, values = function.inputs[KEYS], function.inputs[VALUES]
        offsets, total = {}, 0
        for i in self._owners():
            offsets[i], total = total, total + self.config.layers[i].kv_heads
        return State(keys, values, offsets, (mb.read_state(input=keys), mb.read_state(input=values)))

    def _rows(self, count: int | None, begin: Var, end: Var) -> Rows:
        return Rows.of(self.config, self.part.layers, self.bank, self.plan.context, count, begin, end)

    def _entry(self, function: Function) -> Var:
        if not self.part.first:
            return function.inputs[ROWS_IN]
        x = mb.gather(x=self.bank.tensor("embed"), indices=function.inputs[TOKENS], axis=0)
        scale = self.config.embed_scale * residual_scale(self.config)
        return x if scale == 1 else mb.mul(x=x, y=self.bank.scalar("embed_scale", scale))

    def _layers(self, x: Var, rows: Rows, state: State, last: Var | None) -> Var:
        flexible = rows.count is None
        for i in self.part.layers:
            block = Block(self.config, i, self.bank, state)
            normed = block.norm(x, "attn_norm")
            block.store(normed, rows)
            if flexible and i == self.part.layers.start:
                rows = rows.without_slot(self._empty_slot(state, i))
            if i == self.config.last_writer and last is not None:
                x, normed = (mb.gather(x=value, indices=last, axis=1) for value in (x, normed))
                rows = rows.only(last)
            x = mb.add(x=x, y=block.attend(normed, rows))
            x = mb.add(x=x, y=block.feed_forward(block.norm(x, "ffn_norm")))
        return x

    def _empty_slot(self, state: State, layer: int) -> Var:
        """Booleans [1, 1, 1, context]: whether it is the first slot, and no key was ever written there."""
        spec = self.config.layers[layer]
        first = mb.slice_by_size(
            x=state.current[0], begin=[0, state.offsets[layer], 0, 0], size=[1, spec.kv_heads, 1, -1]
        )
        largest = mb.reduce_max(x=mb.abs(x=first), axes=[1, 2, 3], keep_dims=True)
        is_first = self.bank.constant("is_first", (np.arange(self.plan.context) == 0).reshape(1, 1, 1, -1))
        return mb.logical_and(x=is_first, y=mb.less_equal(x=largest, y=np.float16(0)))

    def _finish(self, function: Function, x: Var) -> None:
        if not self.part.last:
            function.set_outputs([mb.identity(x=x, name=ROWS_OUT)])
            return
        eps = self.config.norm_eps * residual_scale(self.config) ** 2
        normed = rms_norm(x, self.bank.tensor("norm"), eps)
        head = self.bank.tensor("embed" if self.config.tied_head else "head")
        function.set_outputs([mb.linear(x=normed, weight=head, name=LOGITS)])
