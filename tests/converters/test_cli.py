"""`russet convert`: what it prints, what it refuses, and that a dry run writes nothing."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from russet.engine.cli import main


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_conversion_ends_in_one_sentence(tmp_path: Path, hf_folder, llama_config) -> None:
    code, out, err = run(hf_folder(llama_config), tmp_path / "dst", "--bits", "4", "--rule", "nothing=8")
    assert code == 0 and err == "russet: note: the rule 'nothing' matches no tensor\n"
    assert out.startswith(f"Wrote {tmp_path / 'dst'}: 20 tensors of llama from safetensors: 0.3 MB -> 0.1 MB, 4.5")
    assert "read back and run, relative error" in out and out.count("\n") == 1


def test_a_dry_run_prints_a_table_and_writes_nothing(tmp_path: Path, hf_folder, llama_config) -> None:
    code, out, err = run(
        hf_folder(llama_config), tmp_path / "dst", "--dry-run", "--bits", "4", "--rule", "*embed*=8:32"
    )
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "model.embed_tokens.weight 8 bits, group 32 1 tensors 6,912 bytes"
    gate = next(line for line in lines if "gate_proj" in line)
    assert " ".join(gate.split()) == "model.layers.*.mlp.gate_proj.weight 4 bits, group 64 2 tensors 9,216 bytes"
    assert lines[-1].startswith(f"Would write {tmp_path / 'dst'}")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_json(tmp_path: Path, hf_folder, llama_config) -> None:
    code, out, _ = run(hf_folder(llama_config), tmp_path / "dst", "--json", "--dtype", "float16")
    report = json.loads(out)
    assert code == 0 and report["dst"] == str(tmp_path / "dst") and report["dtype"] == "float16"
    assert report["bytes_out"] == sum(path.stat().st_size for path in (tmp_path / "dst").iterdir())
    assert report["errors"].keys() == {"attention", "embedding", "feed-forward", "norms"} and "plan" not in report


@pytest.mark.parametrize(
    "arguments", [["--bits", "3"], ["--group-size", "16"], ["--dtype", "int8"], ["--rule", "x"], ["--rule", "x=3"]]
)
def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    code, _, err = run(tmp_path / "src", tmp_path / "dst", *arguments)
    assert code == 2 and "Usage" in err


def test_a_problem_is_one_sentence(tmp_path: Path) -> None:
    code, out, err = run(tmp_path / "absent", tmp_path / "dst")
    assert code == 1 and out == ""
    assert err == f"russet: {tmp_path / 'absent'} does not exist; give a model folder or a checkpoint file.\n"
