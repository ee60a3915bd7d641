"""What a model folder says about leaving neurons of its FFN out: two keys of its `config.json`, both Russet's own.

`ffn_down: "neuron_major"`  down projections are stored [ffn, hidden], a row a neuron, so that packed groups run along
                            the outputs and a neuron's row can be skipped
`ffn_thresholds: [...]`     one number a layer: activations |act(gate)| up to it count as zero (lossy: CATS, arXiv
                            2404.08763; TEAL, arXiv 2408.14690)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from russet.engine.errors import UnsupportedModelError

DOWN_KEY = "ffn_down"
THRESHOLDS_KEY = "ffn_thresholds"
NEURON_MAJOR = "neuron_major"


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How the FFNs of a folder are stored and cut; no thresholds mean that nothing is."""

    neuron_major: bool = False
    thresholds: tuple[float, ...] = ()

    def threshold(self, layer: int) -> float:
        return self.thresholds[layer] if self.thresholds else 0.0


def read_sparsity(config: dict[str, Any], layers: int) -> Sparsity:
    """Read both keys of a `config.json`; raises UnsupportedModelError for values that cannot be."""
    layout, thresholds = config.get(DOWN_KEY), config.get(THRESHOLDS_KEY, [])
    if layout not in (None, NEURON_MAJOR):
        raise UnsupportedModelError(f"config.json has {DOWN_KEY} {layout!r}; Russet reads {NEURON_MAJOR!r}.")
    sound = isinstance(thresholds, list) and all(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in thresholds
    )
    if not sound or len(thresholds) not in (0, layers):
        raise UnsupportedModelError(
            f"config.json has {THRESHOLDS_KEY} that are not {layers} numbers, one a layer and none below 0; "
            "calibrate the model again."
        )
    return Sparsity(layout == NEURON_MAJOR, tuple(float(value) for value in thresholds))
