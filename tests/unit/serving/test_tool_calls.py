"""Calls in answers: every syntax, however the stream is cut."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.llama_cpp.text import TextAssembler
from serving.openai_api.tools import AUTO, REQUIRED, Function, ToolReader, Tools
from serving.tool_calls import ArgumentsSplitter, CallSplitter, begins_bare, calls_in
from serving.tool_syntax import CLOSING, GRANITE, HERMES, LLAMA, MISTRAL, SYNTAXES, CallSyntax

OSLO, LIMA = {"city": "Oslo"}, {"city": 'Líma {<[TOOL_CALLS]"\\', "n": [1, {"x": None}]}
CALLS: list[tuple[str, Any]] = [("weather", OSLO), ("clock", {}), ("weather", LIMA)]
FUNCTIONS = (Function("weather", "", {"type": "object"}), Function("clock", "", {"type": "object"}))
TOOLS = Tools(FUNCTIONS)

# As the models of the families write them, and as their templates write earlier ones.
WRITTEN: list[tuple[str, list[tuple[str, Any]]]] = [
    ('{"name": "weather", "arguments": {"city": "Oslo"}}', CALLS[:1]),
    ('{"name": "weather", "parameters": {"city": "Oslo"}}', CALLS[:1]),
    ('{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}}', CALLS[:1]),
    (
        '\n\n{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "clock", "parameters": {}}',
        CALLS[:2],
    ),
    ('<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}', CALLS[:1]),
    (
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}};'
        '{"name": "clock", "parameters": {}}',
        CALLS[:2],
    ),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]', CALLS[:1]),
    (
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "a1b2c3d4e"}, '
        '{"name": "clock", "arguments": {}, "id": "a1b2c3d4f"}]',
        CALLS[:2],
    ),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}', CALLS[:1]),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]clock[ARGS]{}', CALLS[:2]),
    ('[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Oslo"}', CALLS[:1]),
    ('[TOOL_CALLS]weather{"city": "Oslo"}', CALLS[:1]),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', CALLS[:1]),
    (
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
        '<tool_call>{"name": "clock", "arguments": {}}',
        CALLS[:2],
    ),
    ('<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]', CALLS[:1]),
    ('<|tool_call|>{"name": "weather", "arguments": {"city": "Oslo"}}<|/tool_call|>', CALLS[:1]),
    ('<function=weather>{"city": "Oslo"}</function><function=clock>{}</function>', CALLS[:2]),
]
# What only looks like calls, is cut off, or calls what there is not.
TEXTS = [
    "",
    "{",
    "{}",
    '{"answer": 42} is it',
    '{"names": ["weather"]}',
    '{"name": "weather"}',
    '{"name": "weather", "arguments": {"city": "Osl',
    '{"name": "nothing", "arguments": {}}',
    '{"name": "weather", "arguments": {}} and so on',
    '{"name": "weather", "arguments": {}}; {"name": "clo',
    '{"name": "weather", "arguments": {"city": NaN}}',
    '[TOOL_CALLS]weather[ARGS]{"city": 1e999}',
    "[TOOL_CALLS]",
    "[TOOL_CALLS] [",
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}',
    '[TOOL_CALLS] [{"name": "nothing", "arguments": {}}]',
    "[TOOL_CALLS]weather[ARGS]{",
    "[TOOL_CALLS]nothing[ARGS]{}",
    "[TOOL_CALLS]weather[ARGS]{'city': 1}",
    "[TOOLS] are [TOOL_CALL",
    "a list: [1, 2, [TO",
    "<|python_tag|>print(1)",
    '<|python_tag|>weather.call(city="Oslo")',
    "<|python_tag",
    "<tool_call>weather</tool_call>",
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    '<tool_call>{"name": "weather", "arguments": {}} and so on',
    "<b>bold</b> 1 < 2",
    "<function=weather>{} and so on",
    "Ein Gruß aus Köln 👋 <",
]
BEFORE = ["", "\n", "Let me look.\n\n", "1 < 2 [x] {y}: "]


def pieces(text: str, cut: int) -> list[str]:
    """What an engine shows of an answer whose bytes come in two tokens, cut there."""
    assembler, data = TextAssembler(), text.encode()
    return [assembler.push(data[:cut])[0], assembler.push(data[cut:])[0], assembler.flush()]


def parted(parts: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    splitter = CallSplitter({"weather", "clock"})
    shown = "".join([splitter.feed(part) for part in parts])
    rest, calls = splitter.end()
    return shown + rest, calls


def ways(text: str) -> list[list[str]]:
    """Cut at every byte, and every letter by itself."""
    return [pieces(text, cut) for cut in range(len(text.encode()) + 1)] + [list(text)]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(("text", "calls"), WRITTEN)
def test_calls_are_found_wherever_the_stream_is_cut(
    text: str, calls: list[tuple[str, Any]], before: str
) -> None:
    bare = text.lstrip().startswith("{")
    if bare and before.strip():
        # A brace behind a text is text.
        expected: tuple[str, list[tuple[str, Any]]] = (before + text, [])
    else:
        expected = (before if before.strip() else "", calls)
    for parts in ways(before + text):
        assert parted(parts) == expected, parts


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_is_text_without_loss(text: str, before: str) -> None:
    for parts in ways(before + text):
        assert parted(parts) == (before + text, []), parts


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_a_syntax_writes_is_read(syntax: CallSyntax, count: int) -> None:
    text = syntax.write(CALLS[:count])
    assert calls_in(text) == CALLS[:count]
    assert parted(list(text)) == ("", CALLS[:count])


@pytest.mark.parametrize("syntax", [LLAMA, MISTRAL, HERMES, GRANITE])
def test_every_beginning_of_calls_is_text_or_whole_calls(syntax: CallSyntax) -> None:
    """Cut by its length: nothing is lost, and no call is made of a half."""
    text = syntax.write(CALLS)
    found = 0
    for cut in range(len(text)):
        content, calls = parted(list(text[:cut]))
        assert calls in ([], CALLS[: len(calls)])
        assert content == ("" if calls else text[:cut])
        found += bool(calls)
    # The control: some beginnings are calls.
    assert (found > 0) is (syntax in (LLAMA, HERMES))


def test_nothing_of_a_call_is_shown_before_its_end() -> None:
    for text, _ in WRITTEN:
        splitter = CallSplitter({"weather", "clock"})
        assert "".join(map(splitter.feed, f"So: {text}")) == (
            f"So: {text}" if text.lstrip()[0] == "{" else "So: "
        )


def test_text_is_shown_as_soon_as_it_can_be_none_of_a_call() -> None:
    splitter = CallSplitter(set())
    shown = [splitter.feed(part) for part in ("Hi", " <", "b> [TOOL", "S] {", '"name": ')]
    assert shown == ["Hi", " ", "<b> ", "[TOOLS] {", '"name": ']
    splitter = CallSplitter(set())
    assert [splitter.feed(part) for part in ('{"', "na", 'tion": ', "1}")] == ["", "", '{"nation": ', "1}"]


FRAGMENT = st.sampled_from(
    [
        *CLOSING,
        *filter(None, CLOSING.values()),
        *(text for text, _ in WRITTEN),
        "{",
        "}",
        "[",
        "<",
        "é",
        " ",
        "\n",
    ]
)


@given(st.lists(st.one_of(FRAGMENT, st.text(max_size=6)), max_size=8), st.randoms(use_true_random=False))
def test_however_it_comes_it_is_read_alike(fragments: list[str], random: Any) -> None:
    text = "".join(fragments)
    cuts = sorted(random.sample(range(len(text) + 1), min(len(text), 6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, calls = parted(parts)
    assert (content, calls) == parted([text])
    if not calls:
        assert content == text
    else:
        assert text.startswith(content)
        assert calls_in(text[len(content) :]) == calls


def test_a_bare_call_tells_by_its_first_member() -> None:
    tells = [
        begins_bare(t) for t in ("", " \n", "{", '{ "', '{"na', '{"name"', ' {"type"', '{"x', "{1", "x", "[{")
    ]
    assert tells == [None, None, None, None, None, True, True, False, False, False, False]


def test_openings_hold_their_first_character_once() -> None:
    """What the grammar of texts beside calls relies on."""
    assert all(opening.count(opening[0]) == 1 for opening in CLOSING)


# --- what clients read ---


def deltas_of(tools: Tools, parts: list[str]) -> tuple[str, dict[int, tuple[str, str, str]], bool]:
    """(content, {index: (id, name, arguments)}, whether it called)."""
    reader = ToolReader(tools, "call_r")
    content, calls = "", dict[int, tuple[str, str, str]]()
    for delta in [d for part in parts for d in reader.feed(part)] + reader.end():
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            before = calls.get(call["index"], ("", "", ""))
            function = call["function"]
            added = (call.get("id", ""), function.get("name", ""), function["arguments"])
            calls[call["index"]] = (before[0] + added[0], before[1] + added[1], before[2] + added[2])
    return content, calls, reader.called


@pytest.mark.parametrize("choice", [AUTO, REQUIRED])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_stream_gives_what_the_whole_answer_gives(syntax: CallSyntax, choice: str) -> None:
    text = syntax.write(CALLS)
    for parts in ways(text):
        content, calls, called = deltas_of(Tools(FUNCTIONS, choice), parts)
        assert (content, called) == ("", True)
        assert [(name, json.loads(given)) for _, name, given in calls.values()] == CALLS
        assert [call[0] for call in calls.values()] == ["call_r", "call_r-1", "call_r-2"]
    whole, made = Tools(FUNCTIONS, choice).read(text)
    assert (whole, [(call.name, json.loads(call.arguments)) for call in made]) == ("", CALLS)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_named_functions_arguments_come_as_they_are_written(syntax: CallSyntax) -> None:
    text = syntax.write([("weather", LIMA)])
    for parts in ways(text):
        content, calls, called = deltas_of(Tools(FUNCTIONS, "weather"), parts)
        assert (content, called) == ("", True)
        assert [(name, json.loads(given)) for _, name, given in calls.values()] == [("weather", LIMA)]
        (whole,) = Tools(FUNCTIONS, "weather").read(text)[1]
        assert [(name, given) for _, name, given in calls.values()] == [(whole.name, whole.arguments)]
    splitter = ArgumentsSplitter("weather")
    shown = [splitter.feed(letter) for letter in text]
    begins = text.index('{"city"')
    assert "".join(shown[: begins + 1]) == "{"
    assert all(shown[begins : begins + len(json.dumps(LIMA, ensure_ascii=False))])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_named_functions_call_that_was_cut_off_loses_nothing(syntax: CallSyntax) -> None:
    text = syntax.write([("weather", OSLO)])
    begins, ends = text.index('{"city"'), text.index('"Oslo"}') + len('"Oslo"}')
    for cut in range(len(text)):
        content, calls, called = deltas_of(Tools(FUNCTIONS, "weather"), list(text[:cut]))
        if cut <= begins:
            assert (content, calls, called) == (text[:cut], {}, False)
        else:
            assert (content, calls[0][2]) == ("", text[begins : min(cut, ends)])
            assert called is (cut >= ends)


@pytest.mark.parametrize(
    "text", ["no", '{"city": "Oslo"}', '{"name": "clock", "arguments": {}}', '{"name": "weathe', "x" * 3000]
)
def test_what_does_not_call_the_named_function_is_text(text: str) -> None:
    assert deltas_of(Tools(FUNCTIONS, "weather"), list(text)) == (text, {}, False)
    assert Tools(FUNCTIONS, "weather").read(text) == (text, [])


def test_members_in_another_order_are_the_named_functions_all_the_same() -> None:
    text = '{"arguments": {"city": "Oslo"}, "name": "weather"}'
    content, calls, called = deltas_of(Tools(FUNCTIONS, "weather"), list(text))
    assert (content, called, calls[0][1:]) == ("", True, ("weather", '{"city": "Oslo"}'))


@pytest.mark.parametrize("before", ["", "[TOOL_CALLS]", "[", "{", '{"name": "weather", "arguments":'])
def test_white_space_where_a_named_functions_call_should_begin_costs_no_time(before: str) -> None:
    began = time.process_time()
    assert Tools(FUNCTIONS, "weather").read(before + " " * 1500 + "x")[1] == []
    assert time.process_time() - began < 0.5


def test_many_calls_cost_as_much_each_as_a_few() -> None:
    text = '{"name": "clock", "arguments": {}}\n' * 60_000
    began = time.process_time()
    assert len(calls_in(text)) == 60_000
    assert time.process_time() - began < 1.0
