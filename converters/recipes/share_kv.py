"""The last 3/8 of the layers read an earlier layer's keys and values (Apple's on-device model of 2025, split 5:3).

Their key and value projections go; prefill needs none of their work, and the cache none of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from russet.converters.recipes.base import Objective, Options, Recipe
from russet.engine.errors import InvalidOptionError
from russet.models.families import read_decoder
from russet.models.variant import set_kv_sources


@dataclass(frozen=True, slots=True)
class ShareOptions(Options):
    """`share` is the part of the layers that lose their keys and values, counted from the end."""

    share: float = 3 / 8


class ShareKV(Recipe):
    """Cross-layer sharing of keys and values, repaired by distillation."""

    name = "share_kv"
    summary = "the last 3/8 of the layers read one earlier layer's keys and values"
    options_type: ClassVar[type[Options]] = ShareOptions
    objective: ClassVar[Objective] = Objective(kl=1.0, hidden=0.5)

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.options, ShareOptions)
        return share_last(raw, self.options.share)


def share_last(raw: dict[str, Any], share: float) -> dict[str, Any]:
    """config.json with the last `share` of its layers reading the last layer before them."""
    layers = read_decoder(raw).layers
    readers = int(share * len(layers))
    if not 0 < readers < len(layers):
        raise InvalidOptionError(
            f"A share of {share} leaves {readers} of {len(layers)} layers to read another's keys and values; it must "
            "be one at least and not all."
        )
    if any(layer.kv_source is not None for layer in layers):
        raise InvalidOptionError("Some of the source's layers share keys and values already; give a model without.")
    owners = len(layers) - readers
    return set_kv_sources(raw, [None] * owners + [owners - 1] * readers)
