"""A model folder as an exporter reads it: its configuration, its tensors by role, and the files to put beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from russet.converters.base import tokenizer_files
from russet.converters.expected import decoder_config, has_bias
from russet.engine.errors import UnsupportedModelError
from russet.models.config_file import read_config
from russet.models.families import family_of
from russet.models.shapes import Shape, expected_shapes, parameter_count
from russet.models.sparsity import read_sparsity

if TYPE_CHECKING:
    import numpy as np

    from russet.models.linear import Affine

_NOT_OF_A_PACKAGE = ("quantization", "quantization_config")


class ModelTensors:
    """The model in `folder`, dense or in MLX's affine layout; tensors are read when they are asked for.

    Roles are those of models/families/base.py, with fused projections taken apart, so that every family has `q`, `k`,
    `v`, `gate` and `up`. Raises what reading a configuration raises, and UnsupportedModelError for FFNs that thresholds
    cut.
    """

    def __init__(self, folder: Path, repository: str | None = None) -> None:
        self.folder = folder
        self.repository = repository
        """The hub repository that it came from, where that is known."""
        self.raw = read_config(folder)
        self.config = decoder_config(self.raw)
        self.names = family_of(self.raw).names(self.config)
        self.shapes: dict[str, Shape] = expected_shapes(self.config)
        self._sparsity = read_sparsity(self.raw, len(self.config.layers))
        if any(self._sparsity.thresholds):
            raise UnsupportedModelError(
                f"{folder.name} leaves neurons out below thresholds, which packages cannot; export the model that it "
                "was made from."
            )
        self._held: dict[str, np.ndarray | Affine] = {}
        self._open()

    @property
    def parameters(self) -> int:
        return parameter_count(self.config, self.names)

    def dense(self, role: str) -> np.ndarray:
        """A tensor in float32, [out, in] or a vector."""
        import mlx.core as mx
        import numpy as np

        stored = self.stored(role)
        whole = stored if isinstance(stored, np.ndarray) else np.array(stored.expand(mx.float32))
        return np.ascontiguousarray(whole.T) if self.by_neuron(role) else whole

    def by_neuron(self, role: str) -> bool:
        """Whether a weight is stored [in, out], a row a neuron, so that sparse FFNs can skip rows."""
        return self._sparsity.neuron_major and role.endswith(".down")

    def stored(self, role: str) -> np.ndarray | Affine:
        """A weight as it is stored: float32 rows, or packed ones with scales and biases in float32."""
        part = self._part_of(role)
        if part is None:
            return self._read(role, keep=role == "embed" and self.config.tied_head)
        whole, start, end = part
        value = self._read(whole, keep=True)
        return value[start:end] if hasattr(value, "shape") else _rows(value, start, end)  # pyright: ignore[reportArgumentType, reportIndexIssue]

    def stored_layout(self, role: str) -> tuple[int | None, int]:
        """Bits and group size (0: a whole row) of a packed weight, or (None, 0) for a dense one; nothing is read."""
        part = self._part_of(role)
        name = self.names[role if part is None else part[0]]
        return self._layouts.get(name, (None, 0))

    def bias(self, role: str) -> np.ndarray | None:
        """A linear map's bias in float32, or None where the family has none."""
        if not has_bias(self.config, role.rpartition(".")[2]):
            return None
        return _array(self._weights.bias(role))

    def scalar(self, role: str) -> float:
        """A number that the checkpoint stores under the role's own name, such as AFM's scales."""
        return float(_array(self._weights.bare(role)).reshape(()))

    def release(self, layer: int) -> None:
        """Forget what was kept of a layer."""
        for role in [role for role in self._held if role.startswith(f"layers.{layer}.")]:
            del self._held[role]

    def files(self) -> dict[str, bytes | Path]:
        """config.json, without what it says of how this folder stores weights, and the tokenizer's files."""
        config = {key: value for key, value in self.raw.items() if key not in _NOT_OF_A_PACKAGE}
        return {"config.json": json.dumps(config, indent=2).encode(), **tokenizer_files(self.folder)}

    def _open(self) -> None:
        from russet.engine.blas import use_fast_blas
        from russet.models.weights import Weights

        use_fast_blas()
        self._weights = Weights(self.folder, self.raw, self.names, self.config)
        layouts = {name: self._weights.packed_layout(name) for name in self.names.values()}
        self._layouts = {name: layout for name, layout in layouts.items() if layout is not None}

    def _part_of(self, role: str) -> tuple[str, int, int] | None:
        """Where a role is some rows of a fused tensor: that tensor's role, and the rows."""
        prefix, _, part = role.rpartition(".")
        if role in self.names or part not in ("q", "k", "v", "gate", "up"):
            return None
        spec = self.config.layers[int(prefix.split(".")[1])]
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        rows = {
            "q": ("qkv", 0, q),
            "k": ("qkv", q, q + kv),
            "v": ("qkv", q + kv, q + 2 * kv),
            "gate": ("gate_up", 0, spec.ffn_dim),
            "up": ("gate_up", spec.ffn_dim, 2 * spec.ffn_dim),
        }
        whole, start, end = rows[part]
        return f"{prefix}.{whole}", start, end

    def _read(self, role: str, keep: bool) -> np.ndarray | Affine:
        if role in self._held:
            return self._held[role]
        import mlx.core as mx

        from russet.models.linear import Affine

        if len(self.shapes[role]) == 1:
            value = _array(self._weights.dense(role, mx.float32))
        else:
            weight = self._weights.weight(role, mx.float32, expand=False)
            if isinstance(weight, Affine) and weight.adapter is not None:
                weight = weight.expand(mx.float32)
            value = _array(weight) if isinstance(weight, mx.array) else weight
        self._weights.taken()
        # What has the levels of balanced weights is looked at before it is stored.
        if keep or getattr(value, "bits", None) == 2:
            self._held[role] = value
        return value


def _array(array) -> np.ndarray:
    import mlx.core as mx
    import numpy as np

    return array if isinstance(array, np.ndarray) else np.array(array.astype(mx.float32))


def _rows(affine: Affine, start: int, end: int) -> Affine:
    from russet.models.linear import Affine

    return Affine(
        affine.weight[start:end], affine.scales[start:end], affine.biases[start:end], affine.group_size, affine.bits
    )
