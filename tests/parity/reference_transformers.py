"""Hugging Face transformers on the CPU: the reference for llama, mistral, qwen2, qwen3 and gemma3_text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging
from variants import Config

logging.disable_progress_bar()
logging.set_verbosity_error()

LOAD: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint for this configuration; a tied head has none of its own."""
    model = AutoModelForCausalLM.from_config(_read(config), **LOAD)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def norm_centre(config: Config) -> float:
    """What norm weights lie around: Gemma's norms multiply by 1 + weight."""
    return 0.0 if config["model_type"] == "gemma3_text" else 1.0


def rewritten(config: Config) -> Config:
    """The same configuration as this version of transformers writes it into `config.json`."""
    written = _read({**config, "dtype": "float32"})
    return json.loads(written.to_json_string())


class Model:
    """A committed folder in the reference implementation; refuses tensors that are missing or left over."""

    def __init__(self, folder: Path, config: Config) -> None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=_read(config), output_loading_info=True, **LOAD
        )
        self._model, report = loaded
        amiss = {key: names for key, names in report.items() if names}
        if amiss:
            raise ValueError(f"{folder} does not fit the reference: {amiss}")
        self._model.eval()

    def logits(self, tokens: np.ndarray, step: int) -> np.ndarray:
        """float32 [len(tokens), vocab], fed `step` tokens at a time through the reference's own cache."""
        pieces, cache = [], None
        with torch.no_grad():
            for start in range(0, len(tokens), step):
                ids = torch.from_numpy(tokens[start : start + step].astype(np.int64))[None]
                output = self._model(ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                pieces.append(output.logits[0].numpy())
        return np.concatenate(pieces)


def _read(config: Config) -> Any:
    return AutoConfig.for_model(**json.loads(json.dumps(config)))
