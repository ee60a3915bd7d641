"""Reading a configuration: what each family makes of it, and that whatever is in it is read or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.engine.errors import RussetError, UnsupportedModelError
from russet.models.config import DecoderConfig
from russet.models.families import family_of, read_decoder
from russet.models.rope import Rotary, inverse_frequencies

GOLDEN = Path(__file__).parents[1] / "golden"


def test_families_refuse_what_they_do_not_implement() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba'; Russet implements .*llama"):
        family_of({"model_type": "mamba"})
    stock = {"model_type": "qwen2", "use_sliding_window": True}
    with pytest.raises(UnsupportedModelError, match="use_sliding_window = True"):
        family_of(stock).read(stock)
    afm = {"model_type": "afm7", "hidden_dim": 8, "num_heads": 2, "num_layers": 2, "num_kv_reuse_layers": 2}
    with pytest.raises(UnsupportedModelError, match="at least one layer must own"):
        family_of(afm).read(afm)
    openelm = {
        "model_type": "openelm",
        "model_dim": 8,
        "head_dim": 4,
        "num_transformer_layers": 2,
        "num_query_heads": [2],
        "num_kv_heads": [1, 1],
        "ffn_multipliers": [1.0, 1.0],
    }
    with pytest.raises(UnsupportedModelError, match="other than its 2 layers"):
        family_of(openelm).read(openelm)


def test_gemma_layer_types_must_be_one_a_layer_and_known() -> None:
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention"],
    }
    for kinds in (["sliding_attention"], ["full_attention", "chunked_attention"]):
        with pytest.raises(UnsupportedModelError, match="for 2 layers; one a layer is needed"):
            family_of(config).read({**config, "layer_types": kinds})
    both = family_of(config).read({**config, "layer_types": ["sliding_attention", "full_attention"]})
    assert [layer.window for layer in both.layers] == [4096, None]


def test_mistral_has_the_window_that_transformers_assumes_unless_it_says_null() -> None:
    config = json.loads((GOLDEN / "mistral" / "config.json").read_text())
    del config["sliding_window"]
    assert family_of(config).read(config).layers[0].window == 4096
    assert family_of(config).read({**config, "sliding_window": None}).layers[0].window is None


def test_where_a_config_carries_both_rope_keys_the_older_one_counts() -> None:
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    both = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    scaling = family_of(config).read({**config, **both}).layers[0].rope.scaling
    assert scaling is not None and scaling.factor == 2.0


CONFIGS = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*/config*.json"))]
junk = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**9, 1e308, -1.5, math.nan, math.inf, "abc", "16"])
) | st.sampled_from([[], {}, [1, 2], ["x"], {"rope_type": "yarn", "factor": 0}, {"full_attention": 3}])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_configuration_is_read_or_refused_whatever_is_in_it(config: dict, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(set(config) - {"model_type"})), min_size=1, max_size=3))
    hostile = {**config, **{key: data.draw(junk) for key in keys}}
    try:
        decoder = read_decoder(hostile)
    except RussetError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(decoder, DecoderConfig) and decoder.layers
    with np.errstate(all="raise"):
        for rope in {layer.rope for layer in decoder.layers}:
            assert (inverse_frequencies(rope) > 0).all()


HOSTILE = [None, 0, -1, 1, 1e-6, 1e6, 1e308, math.nan, math.inf, "x", [], {}, True]


@pytest.mark.parametrize("name", ["llama-llama3", "llama-yarn", "llama-linear", "qwen3-yarn"])
def test_a_rotation_is_made_of_numbers_or_refused(name: str) -> None:
    config = json.loads((GOLDEN / name / "config.json").read_text())
    kind = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta")
    for key in (*keys, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"):
        for value in HOSTILE:
            try:
                rope = read_decoder({**config, kind: {**config[kind], key: value}}).layers[0].rope
            except RussetError as error:
                assert "\n" not in str(error)
                continue
            with np.errstate(all="raise"):
                assert np.isfinite(Rotary(rope).table(0, 4)).all(), (key, value)


def test_layers_without_end_cost_no_memory() -> None:
    config = {**CONFIGS[0], "num_hidden_layers": 10**12, "num_layers": 10**12}
    with pytest.raises(UnsupportedModelError, match="at most 1024 layers"):
        read_decoder(config)
