"""SmolLM2's greedy tokens: Russet beside mlx-lm, same float32 weights, for the prompts in tests/golden/prompts.txt.

    python tests/parity/smollm2.py            decode with both, compare with each other and with the committed tokens
    python tests/parity/smollm2.py --write    commit what mlx-lm says to tests/golden/smollm2_greedy.json

Needs the default model in the cache (`russet chat` puts it there); says so and exits with 0 where it is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from golden import ROOT
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model

from russet.engine.blas import use_fast_blas
from russet.engine.paths import models_dir
from russet.models.loading import load_decoder

MODEL = "smollm2-135m"
GOLDEN = ROOT / "smollm2_greedy.json"
COUNT = 100


def weights_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("*.safetensors")):
        digest.update(shard.read_bytes())
    return digest.hexdigest()


def load_peer(folder: Path) -> tuple[Any, Any]:
    """mlx-lm's model in float32, unpacked where the folder is quantised, and its tokenizer."""
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    model.set_dtype(mx.float32)  # before unpacking, which computes in the type of the scales
    if "quantization" in json.loads((folder / "config.json").read_text()):
        model = dequantize_model(model)
    return model, tokenizer


def peer_greedy(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """mlx-lm's tokens, past any end of turn, and the least lead that a chosen token had, in nats."""
    tokens, lead = [], np.inf
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=COUNT):
        second, first = np.sort(np.array(logprobs))[-2:]
        tokens.append(int(token))
        lead = min(lead, float(first - second))
    return tokens, lead


def russet_greedy(folder: Path, prompts: Iterable[list[int]]) -> list[list[int]]:
    decoder = load_decoder(folder, dtype="float32")
    replies = []
    for prompt in prompts:
        cache, rows, tokens = decoder.new_cache(), prompt, []
        for _ in range(COUNT):
            logits = decoder.extend(mx.array([rows]), cache)
            assert logits is not None
            rows = [int(np.array(logits[0, -1]).argmax())]
            tokens += rows
        replies.append(tokens)
    return replies


def expected(folder: Path) -> dict[str, Any]:
    """The content of the golden file, computed by mlx-lm."""
    model, tokenizer = load_peer(folder)
    replies = []
    for text in (ROOT / "prompts.txt").read_text(encoding="utf-8").splitlines():
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        tokens, lead = peer_greedy(model, prompt)
        replies.append({"prompt_tokens": prompt, "tokens": tokens, "least_lead": round(lead, 6)})
    source = json.loads((folder / "source.json").read_text())["source"]
    return {"source": source, "weights_sha256": weights_sha256(folder), "replies": replies}


def write(content: dict[str, Any]) -> None:
    """One reply a line, so that a change can be read."""
    head = {"peer": f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}, float32 on a CPU", **content}
    replies = head.pop("replies")
    lines = ",\n".join(f"    {json.dumps(reply)}" for reply in replies)
    body = json.dumps(head, indent=2).removesuffix("\n}")
    GOLDEN.write_text(f'{body},\n  "replies": [\n{lines}\n  ]\n}}\n')


def compare(write_golden: bool = False) -> bool:
    """Whether Russet, mlx-lm and the golden file agree, with a line or two on standard output."""
    folder = models_dir() / MODEL
    if not folder.is_dir():
        print(f"{MODEL} is not in {models_dir()}: not compared")
        return True
    print(f"{MODEL}: decoding with mlx-lm and with Russet, some minutes on a CPU", flush=True)
    use_fast_blas()
    content = expected(folder)
    if write_golden:
        write(content)
    committed = json.loads(GOLDEN.read_text())
    ours = russet_greedy(folder, (reply["prompt_tokens"] for reply in content["replies"]))
    theirs = [reply["tokens"] for reply in content["replies"]]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    lead = min(reply["least_lead"] for reply in content["replies"])
    print(f"{MODEL}: {same} of {len(theirs)} replies of {COUNT} tokens equal mlx-lm's; least lead {lead:.1e} nats")
    stale = [key for key in ("source", "weights_sha256") if committed[key] != content[key]]
    stale += ["tokens"] if [reply["tokens"] for reply in committed["replies"]] != theirs else []
    if stale:
        print(f"{GOLDEN.name} differs in {', '.join(stale)}: it was written from another conversion")
    return same == len(theirs) and not stale


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare SmolLM2's greedy tokens with mlx-lm's.")
    parser.add_argument("--write", action="store_true", help="write the golden file first")
    return 0 if compare(parser.parse_args().write) else 1


if __name__ == "__main__":
    sys.exit(main())
