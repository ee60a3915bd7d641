"""A block of MIL operations as steps: what each reads, which values die after it, and what may be updated in place.

Updating a cache of many megabytes for every token would otherwise copy it for every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from russet.models.mil.arrays import VIEWS


@dataclass
class Step:
    """One operation. `sources` maps an operand to the name of a value, or to several; `last_uses` die after it."""

    kind: str
    outputs: list[Any]
    sources: dict[str, str | list[str]] = field(default_factory=dict)
    state: str = ""
    data: str = ""
    in_place: bool = False
    last_uses: list[str] = field(default_factory=list)

    def reads(self) -> list[str]:
        """The names of the values that it reads."""
        single = [self.data] if self.data else []
        for source in self.sources.values():
            single += source if isinstance(source, list) else [source]
        return single


def schedule(block: Any, constants: dict[str, Any], value_of: Callable[[Any], Any]) -> list[Step]:
    """The steps of a block; its constants go to `constants`, decoded by `value_of`."""
    steps = []
    for operation in block.operations:
        if operation.type == "const":
            constants[operation.outputs[0].name] = value_of(operation.attributes["val"])
        else:
            steps.append(_step(operation, constants, value_of))
    _find_last_uses(steps, constants, set(block.outputs))
    for i, step in enumerate(steps):
        if step.kind == "slice_update":
            step.in_place = _may_overwrite(steps, i)
    return steps


def _step(operation: Any, constants: dict[str, Any], value_of: Callable[[Any], Any]) -> Step:
    step = Step(operation.type, list(operation.outputs))
    operands = [(key, list(argument.arguments)) for key, argument in operation.inputs.items()]
    if operation.type in ("read_state", "write_state"):
        named = {key: bindings[0].name for key, bindings in operands}
        step.state, step.data = named["input"], named.get("data", "")
        return step
    for key, bindings in operands:
        names = [
            _name(binding, f"{operation.outputs[0].name}:{key}:{i}", constants, value_of)
            for i, binding in enumerate(bindings)
        ]
        step.sources[key] = names if key == "values" else names[0]
    if operation.type.startswith("constexpr_"):
        for key in operation.attributes:
            if key != "name":
                name = f"{operation.outputs[0].name}:{key}"
                constants[name] = value_of(operation.attributes[key])
                step.sources[key] = name
    return step


def _name(binding: Any, own: str, constants: dict[str, Any], value_of: Callable[[Any], Any]) -> str:
    """The name of an operand's value; one that is written into the operation becomes a constant of the name `own`."""
    if binding.WhichOneof("binding") == "name":
        return binding.name
    constants[own] = value_of(binding.value)
    return own


def _find_last_uses(steps: list[Step], constants: dict[str, Any], outputs: set[str]) -> None:
    seen = set(outputs) | set(constants)
    for step in reversed(steps):
        made = [output.name for output in step.outputs]
        step.last_uses = [name for name in dict.fromkeys([*step.reads(), *made]) if name not in seen]
        seen.update(step.last_uses)


def _may_overwrite(steps: list[Step], i: int) -> bool:
    """Whether the update at `i` may write into its operand: a state's content whose next use is to store the result.

    The operand must be what the state holds; nothing may later read what the state ever held, or a view of it; and
    before anything else touches the state the result has to become its content.
    """
    update = steps[i]
    operand = update.sources["x"]
    assert isinstance(operand, str)
    origin = next((step for step in steps[:i] if operand in [output.name for output in step.outputs]), None)
    if origin is None or origin.kind != "read_state":
        return False
    touched = [step for step in steps[:i] if step.state == origin.state]
    shared = {step.data or step.outputs[0].name for step in touched}
    for j, step in enumerate(steps):
        if j > i and shared & set(step.reads()):
            return False
        if j != i and step.kind in VIEWS and step.sources.get("x") in shared:
            shared.update(output.name for output in step.outputs)
    touching = [step for step in steps[i + 1 :] if step.state == origin.state]
    before = [step for step in steps[steps.index(origin) + 1 : i] if step.state == origin.state]
    stores = bool(touching) and touching[0].kind == "write_state" and touching[0].data == update.outputs[0].name
    return stores and not before
