"""What a chat template tells of how its model calls functions, and what it is given of earlier calls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from serving.engines.llama_cpp.template import ChatTemplate
from serving.tool_syntax import (
    BARE,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
    PHI,
    SYNTAXES,
    CallSyntax,
)
from serving.tool_text import introduce
from tidegate.routing.domain import Message, Role
from tool_templates import CONTROLS, TEMPLATES

SPECIAL = ["<|im_start|>", "<|im_end|>", *CONTROLS.values()]
WEATHER = {"name": "weather", "description": "tells", "parameters": {"type": "object"}}
OSLO, LIMA = ("weather", {"city": "Oslo"}), ("weather", {"city": "Lima"})
LINES = [f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}' for city in ("Oslo", "Lima")]
USER = Message(Role.USER, "Hi")


class Words:
    """Keeps the prompt; control tokens are numbered by their place in SPECIAL."""

    adds_bos = False
    text = ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> npt.NDArray[np.int32]:
        self.text = text
        return np.array([SPECIAL.index(text) if text in SPECIAL else 1000], np.int32)


def syntax_and_prompt(source: str, *messages: Message) -> tuple[CallSyntax | None, str]:
    words = Words()
    made = ChatTemplate(source, words, SPECIAL, bos="", eos="<|im_end|>")
    syntax = made.prompt(introduce([WEATHER], messages or (USER,)))[1]
    return syntax, words.text


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_templates_own_writing_tells_the_syntax(syntax: CallSyntax) -> None:
    found, prompt = syntax_and_prompt(TEMPLATES[syntax])
    assert found is syntax
    assert '"name": "weather"' in prompt
    assert "You can call these functions" not in prompt


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("<tool_call>{...}</tool_call>", HERMES),
        ("[TOOL_CALLS] and a list", MISTRAL),
        ("[TOOL_CALLS]name[ARGS]{...}", MISTRAL_NAMED),
        ("[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}", MISTRAL_WITH_IDS),
        ("<|tool_call|> followed by a JSON list of tools", GRANITE),
        ("<tool_call><function=name><parameter=x>1</parameter></function></tool_call>", None),
        ("<tool_call>name<arg_key>x</arg_key></tool_call>", None),
        ("call them somehow", None),
    ],
)
def test_where_it_leaves_calls_out_its_words_do(words: str, expected: CallSyntax | None) -> None:
    source = f"{{% if tools %}}{words}: {{{{ tools | tojson }}}}{{% endif %}}" + TEMPLATES[GRANITE].replace(
        "<|tool_call|>", ""
    )
    found, prompt = syntax_and_prompt(source)
    assert found is expected
    assert ("You can call these functions" in prompt) is (expected is None)


@pytest.mark.parametrize(
    "call",
    [
        "<tool_calls>[{{ c.function | tojson }}]</tool_calls>",
        "<tool_call>{{ c.function.name }}<arg_key>{{ c.function.arguments | length }}</arg_key></tool_call>",
        "<tool_call>\n<function={{ c.function.name }}>\n<parameter=city>x</parameter></function></tool_call>",
        "<calls>{{ c.function | tojson }}</calls>",
        '{"tool": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
    ],
)
def test_other_syntaxes_are_not_taken_for_a_known_one(call: str) -> None:
    source = TEMPLATES[BARE].replace("{{ c.function | tojson }}", call)
    assert source != TEMPLATES[BARE]
    # Words tell nothing where the writing does.
    assert syntax_and_prompt(source + "{# <tool_call> </tool_call> #}")[0] is None


def test_a_bare_call_must_be_what_an_answer_begins_with() -> None:
    # As long as "assistant", but what the model is not asked to go on from.
    elsewhere = TEMPLATES[LLAMA].replace("{{ m.role }}", "{{ 'toolcalls' if m.tool_calls else m.role }}")
    assert syntax_and_prompt(elsewhere)[0] is None


def test_a_models_name_tells_nothing() -> None:
    for name in ("Llama 3.1", "Mistral", "Qwen"):
        assert syntax_and_prompt(f"{{# {name} #}}" + TEMPLATES[LLAMA])[0] is LLAMA
        assert (
            syntax_and_prompt(f"You are {name}. {{{{ messages | length }}}}{{{{ tools | length }}}}")[0]
            is None
        )


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_earlier_calls_are_written_as_the_model_would(syntax: CallSyntax) -> None:
    conversation = (
        USER,
        Message(Role.ASSISTANT, LINES[0]),
        Message(Role.TOOL, "mild", name="weather"),
        Message(Role.ASSISTANT, f"And there.\n{LINES[1]}"),
        Message(Role.TOOL, "dry", name="weather"),
    )
    found, prompt = syntax_and_prompt(TEMPLATES[syntax], *conversation)
    assert found is syntax
    said = prompt.replace('[TOOL_CALLS] [{"', '[TOOL_CALLS][{"')
    for number, (call, before) in enumerate(((OSLO, ""), (LIMA, "And there."))):
        written = syntax.write([call])
        if syntax is PHI:
            written = written.replace("\n", "")
        if syntax is MISTRAL:
            written = f'{written[:-2]}, "id": "call0000{number}"}}]'
        if syntax is MISTRAL_WITH_IDS:
            written = written.replace("[ARGS]", f"[CALL_ID]call0000{number}[ARGS]")
        between = "\n" if before and syntax is GRANITE else ""
        assert f"<|im_start|>assistant\n{before}{between}{written}<|im_end|>" in said
    assert prompt.count("<|im_start|>tool\n") == 2


def test_several_calls_of_a_turn_are_one_after_the_other_where_a_template_takes_one() -> None:
    conversation = (
        USER,
        Message(Role.ASSISTANT, "Both.\n" + "\n".join(LINES)),
        Message(Role.TOOL, "mild", name="weather"),
        Message(Role.TOOL, "dry", name="weather"),
        Message(Role.USER, "Thanks"),
    )
    found, prompt = syntax_and_prompt(TEMPLATES[LLAMA], *conversation)
    assert found is LLAMA
    parts = [part.partition("<|im_end|>")[0] for part in prompt.split("<|im_start|>")]
    first, second = LLAMA.write([OSLO]), LLAMA.write([LIMA])
    assert parts[2:] == [
        "user\nHi",
        f"assistant\n{first}",
        "tool\nmild",
        f"assistant\nBoth.{second}",
        "tool\ndry",
        "user\nThanks",
        "assistant\n",
    ]


def test_control_tokens_of_a_syntax_are_shown_and_nothing_else() -> None:
    def shown(syntax: CallSyntax) -> dict[int, bytes]:
        return ChatTemplate(TEMPLATES[syntax], Words(), SPECIAL, bos="", eos="").shown

    assert shown(MISTRAL) == {SPECIAL.index("[TOOL_CALLS]"): b"[TOOL_CALLS]"}
    assert set(shown(MISTRAL_NAMED).values()) == {b"[TOOL_CALLS]", b"[ARGS]"}
    assert set(shown(MISTRAL_WITH_IDS).values()) == {b"[TOOL_CALLS]", b"[CALL_ID]", b"[ARGS]"}
    # Tags that are no control tokens print themselves.
    assert shown(HERMES) == {}
    assert shown(BARE) == {}
