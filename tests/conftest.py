"""A tiny model folder, complete with tokenizer and chat template, made of random weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """With RUSSET_TEST_DEVICE=cpu a machine with a GPU runs the tests on its CPU, as machines without one do."""
    if os.environ.get("RUSSET_TEST_DEVICE") == "cpu":
        import mlx.core as mx

        mx.set_default_device(mx.cpu)


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 259,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 258,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: one token a byte, then <|endoftext|>, <|im_start|> and <|im_end|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_weights(folder: Path, config: dict, seed: int = 0) -> None:
    """Random float32 weights for every tensor that the configuration asks for."""
    import mlx.core as mx

    from russet.models.families import family_of
    from russet.models.shapes import expected_shapes

    family = family_of(config)
    decoder = family.read(config)
    shapes = expected_shapes(decoder)
    mx.random.seed(seed)
    tensors = {}
    for role, name in family.names(decoder).items():
        noise = mx.random.normal(shapes[role])
        tensors[f"{name}.weight"] = 1 + 0.1 * noise if len(shapes[role]) == 1 else 0.2 * noise
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder)
    write_weights(folder, CONFIG)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):
    import russet

    return russet.load(tiny_folder)
