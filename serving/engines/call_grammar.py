"""From the schema of calls to a grammar of calls in a model's own syntax, and of text beside them. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from serving.engines.json_grammar import SchemaRules, compact, either, literal, schema_of
from serving.tool_syntax import BARE, LLAMA, CallSyntax, Form

# In one answer.
MAX_CALLS = 4
# How serving.openai_api.tools begins the schema of a call, and of one of several.
_CALL = '{"type": "object", "properties": {"name": {"const": '
_BEGINNINGS = (_CALL, '{"anyOf": [' + _CALL)
# A brace would begin a bare call, and white space would hide it.
_NO_TEXT = r"{ \t\r\n"
_ID = "[a-zA-Z0-9]{9}"
_KIND = r'"\"type\":" ws "\"function\"," ws'
_OWN_ID = rf'"," ws "\"id\":" ws "\"" {_ID} "\""'


class _Function(NamedTuple):
    """`arguments` is a rule."""

    name: str
    arguments: str


def is_of_calls(schema_text: str) -> bool:
    """Whether the schema is that of calls of functions, as the OpenAI door writes it."""
    return schema_text.startswith(_BEGINNINGS)


def call_grammar(schema_text: str, syntax: CallSyntax | None = None, *, or_text: bool = False) -> str:
    """Of what the schema describes; with `or_text` also of any text that does not begin with a brace.

    With a syntax the calls that the schema describes are written in it, up to four of them where it leaves
    the choice of the function; beside text a bare one will do too. Raises SchemaError.
    """
    schema = schema_of(schema_text)
    rules = SchemaRules(schema)
    described = _described(schema) if syntax is not None else []
    if syntax is None or not described:
        root = rules.rule(schema, "#")
        return rules.grammar(f"{root} | [^{_NO_TEXT}] [^\\x00]*" if or_text else root)
    functions = [
        _Function(name, rules.named("arguments", rules.rule(arguments, where)))
        for name, arguments, where in described
    ]
    most = MAX_CALLS if "anyOf" in schema and syntax is not BARE else 1
    writer = _Writer(rules, functions, syntax, most)
    return rules.grammar(writer.beside_text() if or_text else writer.alone())


def _described(schema: Any) -> list[tuple[str, Any, str]]:
    """(name, schema of the arguments, where that is); none where the schema is not of calls."""
    if not isinstance(schema, dict):
        return []
    parts, found = schema.get("anyOf", [schema]), []
    for number, part in enumerate(parts if isinstance(parts, list) else []):
        members = part.get("properties") if isinstance(part, dict) else None
        if not isinstance(members, dict) or "arguments" not in members:
            return []
        named = members.get("name")
        if not isinstance(named, dict) or not isinstance(named.get("const"), str):
            return []
        place = f"#.anyOf[{number}]" if "anyOf" in schema else "#"
        found.append((named["const"], members["arguments"], f"{place}.arguments"))
    return found


class _Writer:
    def __init__(self, rules: SchemaRules, functions: list[_Function], syntax: CallSyntax, most: int) -> None:
        self._rules, self._functions, self._syntax = rules, functions, syntax
        self._more = most - 1
        self._object = rules.named("call", either(map(self._object_of, functions)))
        self._calls = rules.named("calls", self._opened())

    def alone(self) -> str:
        opening = literal(self._syntax.opens)
        if self._syntax.optional:
            opening = f"({opening})?"
        return f"{opening} {self._calls}" if self._syntax.opens else self._calls

    def beside_text(self) -> str:
        """Calls that are opened are among the texts: they may come behind one."""
        bare = self._calls if self._syntax.optional or not self._syntax.opens else self._object
        return f"{bare} | {self._text()}"

    def _object_of(self, function: _Function) -> str:
        syntax = self._syntax
        name, member = literal(compact(function.name)), literal(compact(syntax.arguments))
        # What models of these syntaxes write besides.
        kind = f"({_KIND})? " if syntax is LLAMA else ""
        own_id = f" ({_OWN_ID})?" if syntax.form is Form.LIST else ""
        call = f'"\\"name\\":" ws {name} "," ws {member} ":" ws {function.arguments}'
        return f'"{{" ws {kind}{call}{own_id} ws "}}"'

    def _opened(self) -> str:
        """What follows the opening."""
        syntax, opening, call = self._syntax, literal(self._syntax.opens), self._object
        closing = f" {literal(syntax.closes)}" if syntax.closes else ""
        if syntax.form is Form.LIST:
            more = self._and_more(f'"," ws {call}')
            return f'ws "[" ws {call}{more} ws "]"{closing}'
        if syntax.form is Form.NAMED:
            one = f"{either(map(self._by_name, self._functions))}{closing}"
            return one + self._and_more(f"{opening} {one}")
        if closing:
            one = f'"\\n"? {call} "\\n"?{closing}'
            return one + self._and_more(f'"\\n"? {opening} {one}')
        return f"ws {call}" + self._and_more(f'ws ";" ws {call}')

    def _by_name(self, function: _Function) -> str:
        syntax = self._syntax
        own_id = f"({literal(syntax.before_id)} {_ID})? " if syntax.before_id else ""
        return f"{literal(function.name)} {own_id}{literal(syntax.before_arguments)} {function.arguments}"

    def _and_more(self, another: str) -> str:
        return f" ({another}){{0,{self._more}}}" if self._more else ""

    def _text(self) -> str:
        """Any text, in which calls must follow the opening wherever it stands.

        Rule text-n stands where the last n characters are the first of the opening. Its first character is
        no other of it, so that a text in which it breaks off can only begin it anew.
        """
        opening, add = self._syntax.opens, self._rules.add
        if not opening:
            return f"[^{_NO_TEXT}\\x00] [^\\x00]*"
        first, shut = literal(opening[0]), _in_class(opening[0])
        add("text-0", f"([^{shut}\\x00] text-0 | {first} text-1)?")
        for n in range(1, len(opening)):
            char = opening[n]
            then = f"text-{n + 1}" if n + 1 < len(opening) else self._calls
            other = f"[^{shut}{_in_class(char)}\\x00] text-0"
            add(f"text-{n}", f"({literal(char)} {then} | {first} text-1 | {other})?")
        return f"[^{_NO_TEXT}{shut}\\x00] text-0 | {first} text-1"


def _in_class(char: str) -> str:
    return f"\\{char}" if char in "[]\\" else char
