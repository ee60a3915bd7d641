"""Llama 3's rule for stretching rotary frequencies, against mlx-lm's."""

import numpy as np
import pytest

from russet.converters.gguf_rope import llama3_divisors


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("size", [64, 128])
def test_divisors_are_those_of_llama3(factor: float, size: int) -> None:
    """mlx-lm keeps stretched wavelengths: their ratio to the plain ones is the divisor."""
    from mlx_lm.models.rope_utils import Llama3RoPE

    scaling = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = Llama3RoPE(dims=size, max_position_embeddings=131072, base=500000.0, scaling_config=scaling)
    expected = np.array(rope._freqs) / 500000.0 ** (np.arange(0, size, 2) / size)
    assert np.allclose(llama3_divisors(500000.0, size, factor, 8192), expected, rtol=1e-5)
