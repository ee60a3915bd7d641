"""What `Model.stream` and sessions take as prompts, messages and options, and what they refuse by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import russet
from russet.engine.encoding import check_ids
from russet.engine.errors import EmptyPromptError, InvalidOptionError


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_an_empty_prompt_is_refused(tiny_model: russet.Model, prompt: str | list[int]) -> None:
    with pytest.raises(EmptyPromptError, match="prompt is empty"):
        tiny_model.stream(prompt)


@pytest.mark.parametrize("prompt", [[65, 259], [-1, 65], (10**12,)])
def test_token_ids_that_the_model_has_no_row_for_are_refused(tiny_model: russet.Model, prompt: list[int]) -> None:
    """MLX does not look: it reads memory that is not the embedding's, or ends the process."""
    with pytest.raises(InvalidOptionError, match=r"has the token id -?\d+, and the model has ids from 0 to 258"):
        tiny_model.stream(prompt)


def test_no_ids_are_all_in_the_vocabulary() -> None:
    """A text to be scored may have nothing before it."""
    check_ids([], 259)
    with pytest.raises(InvalidOptionError, match="token id 259"):
        check_ids([0, 259], 259)


def test_a_tokenizer_of_another_model_is_told(tiny_model: russet.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model.tokenizer, "encode", lambda text, **_: [49151])
    for call in (tiny_model.stream, tiny_model.session().stream):
        with pytest.raises(InvalidOptionError, match="token id 49151"):
            call("Hello")


@pytest.mark.parametrize(
    "prompt", [None, 5, b"hi", ["x"], [1.5], {"role": "user"}, [{"role": "user", "content": "x"}, 5]]
)
def test_what_is_no_prompt_is_refused(tiny_model: russet.Model, prompt: Any) -> None:
    with pytest.raises(InvalidOptionError, match="give a text, a list of messages with role and content, or one of"):
        tiny_model.stream(prompt)


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "x"}, {"role": "user", "content": [{"text": "x"}]}])
def test_messages_have_a_role_and_a_text(tiny_model: russet.Model, message: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=r"^Message 2 has .*; give it as text"):
        tiny_model.stream([{"role": "user", "content": "Hello"}, message])
    with pytest.raises(InvalidOptionError, match="is of type dict; give it as text"):
        tiny_model.session().stream(message)  # type: ignore[arg-type]


def test_ids_may_be_any_librarys_numbers(tiny_model: russet.Model) -> None:
    ids = [[72, 105], (72, 105), np.array([72, 105]), mx.array([72, 105])]
    assert [tiny_model.encode(given) for given in ids] == [[72, 105]] * 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in ("hot", None)),
        *(("max_tokens", value) for value in ("4", 4.5)),
        *(("top_k", value) for value in (None, 1.5)),
        ("seed", 1.5),
        *(("stop", value) for value in (None, 5, [5])),
        *(("logit_bias", value) for value in ({"a": 1}, {1: "a"}, [1])),
    ],
)
def test_values_of_another_type_are_refused(tiny_model: russet.Model, name: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{name} is .*; it must be "):
        tiny_model.stream("x", **{name: value})


def test_options_may_be_numpys_numbers(tiny_model: russet.Model) -> None:
    assert len(tiny_model.generate("x", max_tokens=np.int64(2), temperature=np.float32(0.5), stop=["~"]).tokens) <= 2


def test_unknown_options_and_values_are_refused_by_name(tiny_model: russet.Model, tiny_folder: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no option 'temprature'"):
        tiny_model.stream("x", temprature=1.0)
    with pytest.raises(InvalidOptionError, match="kv_bits is 4"):
        russet.load(tiny_folder, kv_bits=4)
    with pytest.raises(InvalidOptionError, match="dtype is 'int3'"):
        russet.load(tiny_folder, dtype="int3")
