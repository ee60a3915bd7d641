from __future__ import annotations

import json

import pytest


def test_text_and_a_newline_are_all_of_stdout(cli) -> None:
    result = cli("generate", "-p", "say naïve **x**")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "naïve **x**\n", "")


def test_stream_and_no_stream_print_the_same(cli) -> None:
    assert cli("generate", "--no-stream", "-p", "say one two").stdout == "one two\n"


def test_json_is_one_object(cli) -> None:
    result = cli("generate", "-m", "some/model", "-p", "cut naïve words", "--json")
    assert result.stdout.count("\n") == 1 and "naïve" in result.stdout
    assert json.loads(result.stdout) == {
        "text": "naïve words",
        "prompt_tokens": 9,
        "tokens": 2,
        "finish_reason": "length",
        "exact": True,
        "strategy": "exact",
        "note": "",
        "layer_tokens": [],
        "revived": 0,
        "cached_tokens": 380,
        "timings": {"load_s": 0.5, "ttft_s": 0.21, "prefill_s": 0.2, "prefill_tps": 3120.4, "decode_tps": 61.42},
        "peak_memory_bytes": 2_100_000_000,
        "model": "some/model",
        "token_ids": [0, 1],
    }
    assert result.stderr == ""


def test_options_reach_the_model_and_unset_ones_do_not(cli, loaded) -> None:
    cli(
        *("generate", "-m", "m", "--dtype", "float32", "--kv-bits", "8", "-p", "say x", "--raw"),
        *("--max-tokens", "5", "--temp", "0.5", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.1", "--seed", "0"),
        *("--repetition-penalty", "1.1", "--stop", "a", "--stop", "b"),
        *("--logit-bias", "3=-1.5", "--logit-bias", "4=100"),
    )
    cli("generate", "-p", "say x")
    first, second = loaded
    assert first.name == "m"
    assert first.load_options["dtype"] == "float32" and first.load_options["kv_bits"] == 8
    assert first.options == {
        **{
            "raw": True,
            "system": None,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.1,
            "seed": 0,
        },
        **{"repetition_penalty": 1.1, "stop": ("a", "b"), "logit_bias": {3: -1.5, 4: 100.0}},
    }
    assert second.options == {"raw": False, "system": None}
    assert second.load_options["dtype"] is None and second.load_options["kv_bits"] is None


def test_a_system_prompt_reaches_the_model(cli, loaded) -> None:
    assert cli("generate", "-p", "say x", "--system", "Be brief.").stdout == "x\n"
    assert loaded[0].options["system"] == "Be brief."


def test_a_dash_reads_standard_input(cli) -> None:
    assert cli("generate", "-p", "-", input="say piped").stdout == "piped\n"


def test_standard_input_is_left_alone_without_a_dash(cli) -> None:
    assert cli("generate", "-p", "say x", input="piped").stdout == "x\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temp", "-1"], "temperature"),
        (["--raw", "--system", "x"], "--raw leaves no place for --system"),
        (["--logit-bias", "3"], "'3' is not a token number"),
        (["--logit-bias", "x=1"], "'x=1' is not a token number"),
        (["--kv-bits", "3"], "--kv-bits"),
        (
            ["--prefill", "quick"],
            "'quick' is not one of 'exact', 'lazyllm', 'kv-prediction', 'specprefill', 'superposi",
        ),
        (["--keep", "0.5"], "--keep goes with --prefill lazyllm or --prefill kv-prediction"),
        (["--prefill", "lazyllm", "--keep", "0"], "keep is 0.0; it is a share of the prompt"),
        (["--prefill", "lazyllm", "--keep", "1.5"], "keep is 1.5; it is a share of the prompt"),
        (["--prefill", "lazyllm", "--draft", "m"], "--draft goes with --prefill specprefill, not with lazyllm"),
        (["--prefill", "lazyllm", "--prefix-cache"], "--prefix-cache keeps nothing of lazyllm prefill"),
        (["--predictor", "x"], "--predictor goes with --prefill kv-prediction, not with exact"),
        (["--prefill", "kv-prediction"], "--prefill kv-prediction needs --predictor NAME"),
        (["--prefill", "superposition"], "--prefill superposition needs --documents"),
        (["--documents", "missing.txt"], "'missing.txt' does not exist"),
    ],
)
def test_wrong_values_are_refused_before_loading(cli, loaded, arguments: list[str], sentence: str) -> None:
    result = cli("generate", "-p", "x", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not loaded


def test_bytes_that_are_not_utf8_are_refused(cli, loaded) -> None:
    result = cli("generate", "-p", "-", input=b"abc\xff")
    assert result.exit_code == 1
    assert result.stderr.startswith("russet: Standard input is not UTF-8 text (byte 0xff at offset 3)")
    assert not loaded
