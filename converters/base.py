"""What every kind of checkpoint becomes before it is written: a `Source` of lazily read tensors in stock names.

A source file (hf.py, gguf.py, corenet.py, tamm.py) opens a checkpoint and returns a `Source`; nothing after it knows
where the tensors came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import mlx.core as mx

FLOATS = ("float32", "bfloat16", "float16")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What is copied beside the weights: everything a tokenizer, a chat template or a stop rule can be read from."""


class Packed(NamedTuple):
    """A tensor in MLX's affine layout: `weight` uint32 [out, in * bits / 32], `scales` and `biases` [out, groups]."""

    weight: mx.array
    scales: mx.array
    biases: mx.array


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint, not read yet.

    `dtype` names how it is stored: "float32", "bfloat16", "float16", or a GGUF type such as "Q4_K". `read` returns it
    dense, in its own dtype or in float32 where it was packed. Where MLX's affine layout can hold the stored blocks
    exactly, `packed_bits` is their width, in groups of 32, and `read_packed` returns them with float16 scales.
    `pinned` tensors are written in float32 whatever the recipe says.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    read: Callable[[], mx.array]
    packed_bits: int | None = None
    read_packed: Callable[[], Packed] | None = None
    pinned: bool = False

    @property
    def size(self) -> int:
        """The number of weights."""
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True)
class Source:
    """An opened checkpoint: `config` is what `config.json` will say, `files` go beside it as they are.

    `kind` is a word for the user ("GGUF"); `notes` are sentences about what was left out or changed.
    """

    kind: str
    config: dict[str, Any]
    tensors: Sequence[SourceTensor]
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def tokenizer_files(folder: Path) -> dict[str, Path | bytes]:
    """The tokenizer files of a folder, by name; links that leave the folder are refused."""
    from russet.models.shards import inside

    return {name: inside(folder, name) for name in TOKENIZER_FILES if (folder / name).exists()}
