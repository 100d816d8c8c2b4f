"""Chat templates that write calls as those of other model families do, for a model that knows ChatML."""

from __future__ import annotations

from collections.abc import Mapping

from serving.tool_syntax import (
    BARE,
    FUNCTIONARY,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
    PHI,
    CallSyntax,
)

# Control tokens of the test model that mean nothing to it, and what they stand for here.
CONTROLS: Mapping[str, str] = {
    "<jupyter_start>": "[TOOL_CALLS]",
    "<jupyter_text>": "[ARGS]",
    "<jupyter_code>": "[CALL_ID]",
    "<jupyter_output>": "<|python_tag|>",
    "<jupyter_script>": "<|tool_call|>",
}
_HEAD = (
    "{% if tools %}<|im_start|>system\nFunctions: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
)
_TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_EACH = "{% for c in m.tool_calls %}"


def _template(calls: str) -> str:
    return f"{_HEAD}{{{{ m.content }}}}{calls}{_TAIL}"


_ID_CHECK = (
    "{% if c.id | length != 9 %}{{ raise_exception('Ids of calls have nine letters') }}{% endif %}"
    "{{ c.function.name }}[CALL_ID]{{ c.id }}"
)
TEMPLATES: Mapping[CallSyntax, str] = {
    BARE: _template(_EACH + "{{ c.function | tojson }}{% endfor %}"),
    HERMES: _template(_EACH + "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"),
    LLAMA: _template(
        "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('One call') }}{% endif %}"
        + _EACH
        + '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}'
    ),
    MISTRAL: _template(
        "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ (c.function | tojson)[:-1] }}, "
        '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}'
    ),
    MISTRAL_NAMED: _template(
        _EACH + "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}"
    ),
    MISTRAL_WITH_IDS: _template(
        f"{_EACH}[TOOL_CALLS]{_ID_CHECK}[ARGS]{{{{ c.function.arguments | tojson }}}}{{% endfor %}}"
    ),
    # It tells the model, and leaves earlier calls out.
    GRANITE: _template("{# Answer with <|tool_call|> and then a JSON list #}"),
    PHI: _template(_EACH + "<|tool_call|>{{ c.function | tojson }}<|/tool_call|>{% endfor %}"),
    FUNCTIONARY: _template(
        _EACH + "<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>{% endfor %}"
    ),
}
