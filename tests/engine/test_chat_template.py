"""Chat templates: the text is transformers', and a bad or hostile template ends in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.engine.chat_template import ChatTemplate
from russet.engine.errors import ChatTemplateError
from russet.engine.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER = cast(Tokenizer, SimpleNamespace(token_names=NAMES))

CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- set ns = namespace(first=true) %}
{%- if tools is not none %}
    {{- 'Tools: ' + (tools | tojson(indent=4)) }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.index0 > 40 %}{% break %}{% endif %}
    {%- generation %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content }}{{ '<|eot_id|>' }}
    {%- endgeneration %}
    {%- set ns.first = false %}
{%- endfor %}
{%- if add_generation_prompt and not ns.first %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
{{- strftime_now('%Y') | length }}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
    {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}
"""

CONTENT = st.text(max_size=30)
TURNS = st.lists(CONTENT, min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
)
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from tokenizers import Tokenizer as Library
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<s>": 0, "</s>": 1}
    return PreTrainedTokenizerFast(tokenizer_object=Library(models.WordLevel(vocab, "<s>")), **NAMES)


@pytest.mark.parametrize("source", [CHATML, LLAMA_3, GEMMA], ids=["chatml", "llama-3", "gemma"])
@settings(deadline=None, max_examples=40)
@given(messages=TURNS, prompt=st.booleans(), tools=st.sampled_from([None, [{"name": "<é&'>"}]]))
def test_text_is_that_of_transformers(transformers_tokenizer, source, messages, prompt, tools):
    expected = transformers_tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    template = ChatTemplate(source, NAMES)
    assert template.render(messages, add_generation_prompt=prompt, tools=tools) == expected


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def rendered(folder: Path) -> str:
    template = ChatTemplate.load(folder, TOKENIZER)
    assert template is not None
    return template.render(USER)


def test_a_folder_without_a_template(tmp_path):
    assert ChatTemplate.load(write(tmp_path, tokenizer_config__json={}), TOKENIZER) is None


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": "A{{ eos_token }}", "tokenizer_config__json": {"chat_template": "B"}},
        {
            "tokenizer_config__json": {"chat_template": "A{{ eos_token }}"},
            "chat_template__json": {"chat_template": "B"},
        },
        {"chat_template__json": {"chat_template": "A{{ eos_token }}"}},
        {
            "tokenizer_config__json": {
                "chat_template": [
                    {"name": "tool_use", "template": "B"},
                    {"name": "default", "template": "A{{ eos_token }}"},
                ]
            }
        },
    ],
)
def test_where_a_template_is_found(tmp_path, files):
    assert rendered(write(tmp_path, **files)) == "A</s>"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"name": "rag", "template": "x"}], r"no chat template 'default' \(it has: rag\)"),
        ([], r"no chat template 'default' \(it has: none\)"),
        (7, "chat_template of type int"),
    ],
)
def test_unusable_templates(tmp_path, value, message):
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate.load(write(tmp_path, tokenizer_config__json={"chat_template": value}), TOKENIZER)


def test_a_template_file_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ChatTemplateError, match="not readable text"):
        ChatTemplate.load(tmp_path, TOKENIZER)


def test_variables_reach_the_template_and_overrule_the_tokens_names():
    template = ChatTemplate("{{ eos_token }}|{{ enable_thinking }}", NAMES)
    assert template.render(USER, enable_thinking=False) == "</s>|False"
    assert template.render(USER, enable_thinking=True, eos_token="E") == "E|True"


FAILURES = {
    "{{ raise_exception('Only one\n user turn.') }}": "refuses these messages: Only one user turn.",
    "{{ messages[5].content }}": "needs what these messages lack",
    "{{ documents.first.title }}": "needs what these messages lack",
    "{% for %}": "Line 1 of the chat template is not valid jinja2",
    "{{ messages | no_such_filter }}": "is not valid jinja2",
    "{{ ().__class__.__mro__ }}": "tries what the sandbox forbids",
    "{{ cycler.__init__.__globals__ }}": "tries what the sandbox forbids",
    "{{ messages.append(1) }}": "tries what the sandbox forbids",
    "{{ messages[0].update({'role': 'x'}) }}": "tries what the sandbox forbids",
    "{% include '/etc/passwd' %}": "fails on these messages",
    "{{ 1 // 0 }}": "fails on these messages (ZeroDivisionError",
    "{{ range(10 ** 9) | list }}": "was stopped (Range too big",
    "{{ 'a' * 10 ** 9 }}": "was stopped (a sequence repeated",
    "{{ 10 ** [9] * 10 ** 9 }}": "fails on these messages (TypeError",
    "{{ 2 ** (9 ** 9) }}": "was stopped (an exponent",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "was stopped (maximum recursion",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}": "was stopped (more than",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}": "was stopped (more than",
    "{% set s = 'a' * 9 ** 7 %}{% for i in range(99) %}{{ s }}{% endfor %}": "was stopped (more than",
}


@pytest.mark.parametrize(("source", "message"), FAILURES.items())
def test_failures_are_one_sentence(source, message):
    messages = [dict(message) for message in USER]
    with pytest.raises(ChatTemplateError) as raised:
        ChatTemplate(source).render(messages)
    text = str(raised.value)
    assert message in text
    assert text.endswith(".")
    assert "\n" not in text
    assert messages == USER


def test_a_reason_of_any_length_is_cut():
    with pytest.raises(ChatTemplateError) as raised:
        ChatTemplate("{{ raise_exception('x' * 9999) }}").render(USER)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__ }}", "{{ lipsum.__globals__ }}", "{{ '{0.__class__}'.format(1) }}"]
)
def test_private_attributes_show_nothing(source):
    assert ChatTemplate(source).render(USER) == ""


def test_the_budget_of_steps_is_per_rendering():
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}done")
    assert [template.render(USER) for _ in range(5)] == ["done"] * 5


class TestAppleFoundationModels:
    """The expected texts are those of `tamm.preprocessors.instruct_lm.afm.afm_v6`, EOS first."""

    SYSTEM = "<turn_start> system<n>A conversation between a user and a helpful assistant."

    @pytest.fixture
    def template(self, tmp_path) -> ChatTemplate:
        template = ChatTemplate.load(write(tmp_path, config__json={"model_type": "afm7"}), TOKENIZER)
        assert template is not None
        return template

    def test_a_first_turn(self, template):
        expected = f"</s>{self.SYSTEM}<turn_end><turn_start> user<n>Hi<turn_end>"
        assert template.render(USER, add_generation_prompt=False) == expected
        assert template.render(USER) == expected + "<turn_start> assistant<n>"

    def test_a_system_message_replaces_the_default(self, template):
        messages = [{"role": "system", "content": "S"}, *USER, {"role": "assistant", "content": "Yes"}]
        turns = (
            "<turn_start> system<n>S<turn_end><turn_start> user<n>Hi<turn_end><turn_start> assistant<n>Yes<turn_end>"
        )
        assert template.render(messages) == f"</s>{turns}", "the assistant has the last word: no new turn"

    def test_tools_and_calls(self, template):
        call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
        other = {"function": {"name": "g", "arguments": {"y": "é"}}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call, other]},
            {"role": "function", "content": {"r": 2}},
            {"role": "tool", "content": [{"name": "h"}, {"name": "k"}]},
        ]
        assert template.render(messages, tools=[{"name": "f"}, {"name": "g"}]) == (
            f'</s>{self.SYSTEM}<n>system tools: {{"name": "f"}}<n>{{"name": "g"}}<turn_end>'
            "<turn_start> user<n>Hi<turn_end>"
            "<turn_start> assistant<n><executable_start> ```function\n"
            '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "é"}}]'
            "```<executable_end><turn_end>"
            '<turn_start> tool<n>{"r": 2}<turn_end>'
            '<turn_start> tool<n>new tools: {"name": "h"}\n{"name": "k"}<turn_end>'
            "<turn_start> assistant<n>"
        )

    def test_a_response_format(self, template):
        schema = {"json_schema": {"name": "N", "description": "D", "schema": {"type": "object"}}}
        messages = [{"role": "user", "content": "Hi", "response_format": schema}]
        assert template.render(messages, add_generation_prompt=False).endswith(
            '<n>Hi\n\nresponse format in json.\nname: N\ndescription: D\nschema: {"type": "object"}<turn_end>'
        )

    def test_a_template_of_the_folder_comes_first(self, tmp_path):
        path = write(tmp_path, config__json={"model_type": "afm7"}, chat_template__jinja="own")
        assert rendered(path) == "own"
