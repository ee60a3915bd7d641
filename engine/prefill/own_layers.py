"""An auxiliary made of the base's layers, some of which have weights of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from russet.engine.errors import PredictorError
from russet.models.array_weights import ArrayWeights
from russet.models.decoder import Decoder
from russet.models.layer_pruned import layer_pruned
from russet.models.linear import Weight
from russet.models.loading import Builder
from russet.models.shapes import expected_shapes


def auxiliary_of(base: Decoder, layers: Sequence[int], own: Mapping[str, mx.array]) -> Decoder:
    """The base's `layers`, sharing its weights, but for those that `own` has all arrays of, by role.

    Roles have the auxiliary's numbers, `layers.12.q`. Raises PredictorError for arrays that are missing, too many, or
    of another shape than the base's.
    """
    auxiliary = layer_pruned(base, layers)
    if not own:
        return auxiliary
    shapes = expected_shapes(auxiliary.config)
    for name, array in own.items():
        role = name.removesuffix(".bias")
        wanted = shapes.get(role) if name == role else shapes.get(role, (0,))[:1]
        if not role.startswith("layers.") or array.shape != wanted:
            raise PredictorError(f"The auxiliary's {name} has shape {array.shape}, but its base asks for {wanted}.")
    used = _Used(own)
    builder = Builder(auxiliary.config, used, base.dtype, expand=True)
    for j in sorted({int(name.split(".")[1]) for name in own}):
        try:
            auxiliary.blocks[j] = builder.block(j)
        except KeyError as error:
            raise PredictorError(f"The auxiliary's layer {j} lacks {error.args[0]}; it is damaged.") from None
    if surplus := own.keys() - used.names:
        raise PredictorError(f"The auxiliary holds {min(surplus)}, which its base has no use for; it is damaged.")
    mx.eval([block.arrays for block in auxiliary.blocks])
    return auxiliary


class _Used(ArrayWeights):
    """Remembers what was asked for."""

    def __init__(self, arrays: Mapping[str, mx.array]) -> None:
        super().__init__(arrays)
        self.names: set[str] = set()

    def weight(self, role: str, dtype: mx.Dtype, expand: bool) -> Weight:
        self.names.add(role)
        return super().weight(role, dtype, expand)

    def dense(self, role: str, dtype: mx.Dtype) -> mx.array:
        self.names.add(role)
        return super().dense(role, dtype)

    def bias(self, role: str) -> mx.array:
        self.names.add(f"{role}.bias")
        return super().bias(role)
