"""`russet bench quality` beside lm-evaluation-harness: same rows, same weights in float32, row by row.

    russet bench quality -m MODEL --data DATA --limit 50 --dtype float32 --json ours.json \\
        --tasks wikitext,lambada,arc_easy,piqa,hellaswag,boolq,triviaqa,squad
    python tests/parity/quality.py MODEL_FOLDER DATA ours.json

The harness computes with transformers, on the dequantised weights of the folder, and Russet is not imported. Its tasks
are used as they come, but for where the rows are. Needs torch, transformers, mlx, lm-eval 0.4.13 and accelerate.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import mlx.core as mx
import numpy as np
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.squad_completion.task import contains_score
from lm_eval.tasks.squadv2.task import SQuAD2
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

TASKS = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 2048
LOG_TOLERANCE = 5e-3
"""Nats by which a word's log probability, or 1000 nats of running text, may differ: float32 adds in two orders."""


def dequantised(folder: Path) -> dict[str, torch.Tensor]:
    """The folder's tensors in float32."""
    settings = json.loads((folder / "config.json").read_text()).get("quantization", {})
    arrays: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays |= mx.load(str(file))  # type: ignore[operator]
    found = {}
    for name, array in arrays.items():
        stem, _, kind = name.rpartition(".")
        if kind in ("scales", "biases"):
            continue
        if f"{stem}.scales" in arrays:
            own = settings.get(stem, settings)
            scales, biases = (arrays[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            array = mx.dequantize(array, scales, biases, group_size=own["group_size"], bits=own["bits"])
        found[name] = torch.from_numpy(np.array(array.astype(mx.float32)))
    return found


def load(folder: Path, batch: int) -> HFLM:
    """The model behind the harness's own face for transformers."""
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = None
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(dequantised(folder), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW, batch_size=batch, device="cpu")


def read(data: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def pages(text: str) -> Iterator[str]:
    """WikiText by article, as the data set EleutherAI/wikitext_document_level cuts it."""
    lines: list[str] = []
    for line in text.split("\n"):
        mark = line.replace("= = =", "===").replace("= =", "==").strip()
        if mark.startswith("= ") and mark.endswith(" ="):
            if "\n".join(lines).strip():
                yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def squad(row: dict[str, Any]) -> dict[str, Any]:
    head, question = row["query"].removesuffix("\nAnswer:").split("\nQuestion: ")
    title, context = head.removeprefix("Title: ").split("\nBackground: ")
    doc = {"title": title, "context": context, "question": question}
    return {"text": SQuAD2.doc_to_text(None, doc), "answers": row["answers"]}  # type: ignore[arg-type]


def documents(data: Path, name: str) -> list[dict[str, Any]]:
    """The rows with the fields of the public set that the harness reads."""
    if name.startswith("wikitext"):
        return [{"page": page} for page in pages((data / "wikitext2_valid.txt").read_text(encoding="utf-8"))]
    rows = read(data, name)
    if name == "lambada":
        return [{"text": f"{row['query']} {row['answer'][0]}"} for row in rows]
    if name == "boolq":
        return [row | {"label": int(row.pop("answer"))} for row in rows]
    return [squad(row) for row in rows] if name == "squad" else rows


FILES = {
    "wikitext": "wikitext/wikitext.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "triviaqa": "triviaqa/default.yaml",
}
SQUAD = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answers[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 48, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def kind_of(name: str) -> str:
    """A task's name without its window."""
    return name.partition(":")[0]


def write_task(folder: Path, data: Path, name: str, limit: int) -> None:
    """The harness's task, reading its rows from a file."""
    rows = folder / f"{kind_of(name)}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents(data, name)[:limit]))
    task = SQUAD if name == "squad" else {"include": str(TASKS / FILES[kind_of(name)])}
    here = {
        "task": f"here_{kind_of(name)}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    (folder / f"{kind_of(name)}.yaml").write_text(yaml.safe_dump(task | here))


def plain(text: str) -> list[str]:
    """Words as SQuAD's evaluation compares them; the harness takes it from a hub."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(one: list[str], other: list[str]) -> float:
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def theirs(name: str, sample: dict[str, Any]) -> dict[str, float]:
    """A row of the harness under the names of Russet's columns."""
    if name.startswith("wikitext"):
        log, words = sample["word_perplexity"]
        return {"log_probability": log, "words": words, "bytes": sample["byte_perplexity"][1]}
    if name == "lambada":
        return {"log_probability": sample["perplexity"], "acc": sample["acc"]}
    if name == "squad":
        reply, answers = sample["resps"][0][0], sample["doc"]["answers"]
        pairs = [(plain(answer), plain(reply)) for answer in answers]
        exact, f1 = max(one == other for one, other in pairs), max(squad_f1(*pair) for pair in pairs)
        return {"contains": contains_score(reply, answers), "exact": float(exact), "f1": f1}
    return {key: sample[key] for key in ("acc", "acc_norm", "exact_match") if key in sample}


def tolerance(column: str, name: str, values: np.ndarray) -> float:
    """How far two values of a column may be apart."""
    if "log" not in column:
        return 1e-9
    return LOG_TOLERANCE * (np.abs(values).max() / 1000 if kind_of(name) == "wikitext" else 1)


def compare(name: str, samples: list[dict[str, Any]], rows: list[dict[str, Any]], subject: str) -> bool:
    """Print how the rows of a task agree; whether they do."""
    ours = {row["id"]: row["outcomes"][subject]["values"] for row in rows}
    pairs = [(ours[f"{name}/{sample['doc_id']}"], theirs(name, sample)) for sample in samples]
    agree = len(pairs) == len(ours)
    for column in pairs[0][1]:
        left, right = (np.array([values[column] for values in side], dtype=float) for side in zip(*pairs, strict=True))
        apart = np.abs(left - right)
        allowed = tolerance(column, name, right)
        print(f"{name:10} {column:16} {len(pairs)} rows, {int((apart <= allowed).sum())} agree, ", end="")
        print(f"largest difference {apart.max():.2g}, sums {left.sum():.6f} and {right.sum():.6f}", flush=True)
        agree &= bool((apart <= allowed).all())
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("data", type=Path, help="folder of the evaluation data")
    parser.add_argument("report", type=Path, help="what `russet bench quality --json` wrote")
    parser.add_argument("--batch", type=int, default=4, help="sequences that the harness puts together")
    parser.add_argument("--tasks", help="some of the report's tasks")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())
    limit, subject = report["settings"]["limit"], report["subjects"][0]["name"]
    results = {task["task"]: task["rows"] for task in report["results"]}
    known = [name for name in results if kind_of(name) in (*FILES, "squad")]
    wanted = arguments.tasks.split(",") if arguments.tasks else known
    model, agree = load(arguments.model, arguments.batch), True
    with tempfile.TemporaryDirectory() as place:
        for name in wanted:
            write_task(Path(place), arguments.data, name, limit)
            model._max_length = int(name.partition(":")[2] or WINDOW)
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[f"here_{kind_of(name)}"],
                task_manager=TaskManager(include_path=place, include_defaults=False),
                log_samples=True,
                bootstrap_iters=0,
            )
            assert found is not None
            agree &= compare(name, found["samples"][f"here_{kind_of(name)}"], results[name], subject)
    if not agree:
        raise SystemExit("Russet and lm-evaluation-harness differ.")


if __name__ == "__main__":
    main()
