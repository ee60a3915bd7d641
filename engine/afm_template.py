"""The chat template of Apple Foundation Models (2025, version 6), whose checkpoints bring none.

After `tamm.preprocessors.instruct_lm.afm.afm_v6`: a default system message, then turns; the text begins with EOS. Tool
calls, tool results and a JSON response format are spelled as its `maybe_update_message` does.
"""

AFM_TEMPLATE = r"""
{%- if messages[0].role == 'system' -%}
    {%- set turns = messages -%}
{%- else -%}
    {%- set default = 'A conversation between a user and a helpful assistant.' -%}
    {%- set turns = [{'role': 'system', 'content': default}] + messages -%}
{%- endif -%}
{{- eos_token -}}
{%- for turn in turns -%}
    {{- '<turn_start> ' + ('tool' if turn.role == 'function' else turn.role) + '<n>' -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- elif turn.content is mapping -%}
        {{- turn.content | tojson -}}
    {%- else -%}
        {{- 'new tools: ' + (turn.content | map('tojson') | join('\n')) -}}
    {%- endif -%}
    {%- if turn.tool_calls -%}
        {{- '<executable_start> ```function\n[' -}}
        {%- for call in turn.tool_calls -%}
            {%- set arguments = call.function.arguments -%}
            {{- '{"name": ' + (call.function.name | tojson) + ', "arguments": ' -}}
            {{- (arguments if arguments is string else arguments | tojson) + '}' + ('' if loop.last else ', ') -}}
        {%- endfor -%}
        {{- ']```<executable_end>' -}}
    {%- endif -%}
    {%- if turn.response_format -%}
        {%- set schema = turn.response_format.json_schema -%}
        {{- '\n\nresponse format in json.\nname: ' ~ schema.name ~ '\ndescription: ' ~ schema.description -}}
        {{- '\nschema: ' ~ (schema.schema | tojson) -}}
    {%- endif -%}
    {%- if tools and loop.first -%}
        {{- '<n>system tools: ' + (tools | map('tojson') | join('<n>')) -}}
    {%- endif -%}
    {{- '<turn_end>' -}}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}
    {{- '<turn_start> assistant<n>' -}}
{%- endif -%}
"""
