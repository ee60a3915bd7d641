"""A tiny random llama with a byte tokenizer, which Russet and mlx-lm both load in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB, WIDTH, FFN, LAYERS, CONTEXT = 258, 32, 48, 2, 128


def tokenizer() -> Tokenizer:
    """One token a byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def weights() -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (FFN, WIDTH) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (WIDTH, FFN)
    rng = np.random.default_rng(7)
    return {name: (rng.standard_normal(shape) * 0.4 + (len(shape) == 1)).astype("f2") for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "torch_dtype": "float16",
    }
    (made / "config.json").write_text(json.dumps(config))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer().save(str(made / "tokenizer.json"))
    save_file(weights(), made / "model.safetensors", metadata={"format": "pt"})
    return made


class FakeContender:
    """Takes as many seconds a run as the next of `prefills` says, and draws token `token` over and over."""

    setting = "made up"

    def __init__(self, name: str, log: list[tuple[str, int, int]], prefills: list[float], token: int = 1) -> None:
        self.name = name
        self.log = log
        self.prefills = iter(prefills)
        self.token = token

    def run(self, tokens, generate):
        from russet.bench.base import Measurement
        from russet.engine.timing import Timings

        self.log.append((self.name, len(tokens), generate))
        prefill = next(self.prefills)
        times = [prefill + 0.5 * i for i in range(generate)]
        timings = Timings(0.0, prefill, prefill, len(tokens) / prefill, 2.0 if generate > 1 else 0.0, 0, times)
        return Measurement([self.token] * generate, timings, 1_000_000)


@pytest.fixture
def fake() -> type[FakeContender]:
    return FakeContender


@pytest.fixture
def validate() -> Callable[[dict[str, Any]], None]:
    """Raises jsonschema.ValidationError where a report of a benchmark does not follow its published schema."""
    import russet.bench

    def check(raw: dict[str, Any]) -> None:
        name = raw["schema"].removeprefix("russet-bench-").partition("/")[0]
        schema = json.loads((Path(russet.bench.__file__).parent / f"{name}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == schema["properties"]["schema"]["const"]
        jsonschema.validate(raw, schema)

    return check
