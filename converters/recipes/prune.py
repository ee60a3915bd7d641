"""Plain layer pruning, repaired by distillation: what KV Prediction at the same share of layers is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from russet.converters.recipes.base import Objective, Options, Recipe
from russet.converters.recipes.source import Params
from russet.engine.errors import UnsupportedModelError
from russet.models.config import DecoderConfig
from russet.models.families import read_decoder
from russet.models.layer_pruned import pruned_config, spread_layers

COUNT = "num_hidden_layers"


@dataclass(frozen=True, slots=True)
class PruneOptions(Options):
    """`keep` is the share of the layers that stay, evenly spread."""

    keep: float = 0.5


class Prune(Recipe):
    """A model of some of the source's layers."""

    name = "prune"
    summary = "a model with a share of the layers only, repaired by distillation"
    options_type: ClassVar[type[Options]] = PruneOptions
    objective: ClassVar[Objective] = Objective(kl=1.0)

    def configure(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Raises UnsupportedModelError for a configuration that describes its layers one by one."""
        assert isinstance(self.options, PruneOptions)
        config = read_decoder(raw)
        self.kept = spread_layers(config, self.options.keep)
        pruned = {**raw, COUNT: len(self.kept)}
        if COUNT not in raw or not _describes(pruned, pruned_config(config, self.kept)):
            raise UnsupportedModelError(
                f"config.json describes the layers of this {config.family} model one by one, so some cannot be left "
                f"out by changing {COUNT}; take a model whose layers are alike."
            )
        return pruned

    def start(self) -> Params:
        """The kept layers under their new numbers, and what is outside the layers."""
        weights = self.source.weights
        params = {name: array for name, array in weights.items() if not name.startswith("layers.")}
        for new, old in enumerate(self.kept):
            prefix = f"layers.{old}."
            for name, array in weights.items():
                if name.startswith(prefix):
                    params[f"layers.{new}.{name.removeprefix(prefix)}"] = array
        return params


def _describes(raw: dict[str, Any], wanted: DecoderConfig) -> bool:
    try:
        return read_decoder(raw) == wanted
    except UnsupportedModelError:
        return False
