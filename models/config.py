"""What a decoder is, as data: every family's `config.json` is read into one `DecoderConfig`.

Families differ only in these values, so a technique that is written against `DecoderConfig` works on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
QKNorm = Literal["none", "before_rope", "after_rope"]
Attention = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched past the length a model was trained on.

    `kind` "linear" divides positions by `factor`; "llama3" and "yarn" rescale each frequency by its wavelength
    (Llama 3.1's published rule; YaRN, arXiv 2309.00071). Lengths are in tokens.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """YaRN's temperature: queries and keys are multiplied by it."""
    truncate: bool = True
    """YaRN: the ramp between kept and stretched frequencies starts and ends at whole feature indices."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding over the first `dims` features of each head.

    `interleaved` rotates the pairs (0, 1), (2, 3), ...; otherwise feature i is paired with i + dims / 2.
    """

    dims: int
    theta: float
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One transformer block.

    `window` is the number of positions a query sees, itself included (None: all). `kv_source` is the earlier layer
    whose keys and values this layer reads; None means that it writes and reads a cache slot of its own.
    With `relu_shift` s the activation is max(x - s, 0).
    `sigmoid_bias` is b in sigmoid attention, sigmoid(scale Q K^T + b) V (arXiv 2409.04431); None is minus the logarithm
    of the number of keys that the query sees.
    """

    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    rope: Rope
    activation: Activation = "silu"
    relu_shift: float = 0.0
    window: int | None = None
    kv_source: int | None = None
    attention: Attention = "softmax"
    sigmoid_bias: float | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only transformer, complete enough to build it and to size its cache."""

    family: str
    hidden_dim: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    max_positions: int
    norm_eps: float
    qk_norm: QKNorm = "none"
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    post_norms: bool = False
    """Gemma: the attention's and the FFN's outputs are normalised too, before the residual addition."""
    relu_norms: bool = False
    """Rows are cut at zero after the norms before attention and FFN (ReLU Strikes Back, arXiv 2310.04564)."""
    unit_offset_norm: bool = False
    """Gemma: a norm multiplies by 1 + weight."""
    attention_scale: float | None = None
    """Multiplies query-key products; None is head_dim ** -0.5."""
    embed_scale: float = 1.0
    tied_head: bool = True
    quantized_kv: bool = False
    """AFM: keys and values live on an int8 grid with one scale a layer, which the checkpoint holds."""
    eos_token_ids: tuple[int, ...] = ()

    @property
    def last_writer(self) -> int:
        """The last layer that writes keys and values: after it, prefill needs only the rows it wants logits for."""
        return max(i for i, layer in enumerate(self.layers) if layer.kv_source is None)
