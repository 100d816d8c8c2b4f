"""From a JSON schema to a grammar in llama.cpp's GBNF whose every text is valid against the schema. Pure.

What a grammar cannot enforce is refused by name instead of being ignored. Where JSON leaves a choice (white
space, how a character is escaped) the grammar takes the short one, so that a small model cannot run away in
it; where a schema allows members without end, only those that it names are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from serving.engines.number_grammar import Unwritable, integer_rule, number_rule
from serving.engines.pattern_grammar import UnwritablePattern, pattern_rule

MAX_DEPTH = 32
MAX_NODES = 4096
MAX_GRAMMAR_CHARS = 400_000
# llama.cpp writes bounded repetitions out; shorter limits than asked for still give valid answers.
MAX_REPEATS = 1000

_ANNOTATIONS = frozenset(
    (
        *(
            "title",
            "description",
            "default",
            "examples",
            "$schema",
            "$id",
            "$comment",
            "$defs",
            "definitions",
        ),
        *("definitions", "deprecated", "readOnly", "writeOnly", "strict", "name", "contentEncoding"),
        "contentMediaType",
    )
)
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength", "format", "pattern")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "boolean": frozenset(),
    "null": frozenset(),
}
_GENERAL = frozenset(("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"))
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_DATE = 'd4 "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = '("0" | "1") [0-9] ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? "Z"'
_FORMATS = {
    "date": f'"\\"" {_DATE} "\\""',
    "time": f'"\\"" {_TIME} "\\""',
    "date-time": f'"\\"" {_DATE} "T" {_TIME} "\\""',
    "uuid": '"\\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\\""',
}
_BASE = {
    "ws": '" "?',
    "hex": "[0-9a-fA-F]",
    "d4": "[1-2] [0-9] [0-9] [0-9]",
    # No surrogates: half of one is no character, and a pair would count as two.
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CeEfF] hex | [dD] [0-7]) hex hex)',
    "string": r'"\"" char* "\""',
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": '"{" ws (pair ("," ws pair)*)? ws "}"',
    "pair": 'string ws ":" ws value',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
}


class SchemaError(ValueError):
    """A schema that cannot be enforced. The message names the place and carries none of its values."""


def grammar_of(schema_text: str) -> str:
    """Raises SchemaError."""
    schema = schema_of(schema_text)
    rules = SchemaRules(schema)
    return rules.grammar(rules.rule(schema, "#"))


def schema_of(text: str) -> Any:
    """Raises SchemaError."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise SchemaError("the schema is not valid JSON") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class SchemaRules:
    """Names one rule per referenced definition and per object; everything else is written in place."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._nodes = 0
        self._by_ref: dict[str, str] = {}
        self.rules: dict[str, str] = {}

    def grammar(self, root: str) -> str:
        """All rules under this root. Raises SchemaError."""
        rules = {"root": root, **_BASE, **self.rules}
        grammar = "".join(f"{name} ::= {body}\n" for name, body in rules.items())
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise SchemaError(f"the schema's grammar is longer than {MAX_GRAMMAR_CHARS} characters")
        return grammar

    def rule(self, schema: Any, where: str, depth: int = 0) -> str:
        """An expression, of a part of the schema, that can stand in a sequence. Raises SchemaError."""
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise SchemaError(f"the schema is deeper than {MAX_DEPTH} or has more than {MAX_NODES} parts")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise SchemaError(f"{where} is no schema that anything is valid against")
        if "$ref" in schema:
            _only(schema, where, "$ref")
            return self._reference(schema["$ref"], where, depth)
        if "const" in schema or "enum" in schema:
            return self._values(schema, where)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._combined(schema, keyword, where, depth)
        return self._typed(schema, where, depth)

    def _reference(self, ref: Any, where: str, depth: int) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise SchemaError(f"{where} refers to something outside of the schema")
        name = self._by_ref.get(ref)
        if name is None:
            name = self._by_ref[ref] = f"ref-{len(self._by_ref)}"
            self.rules[name] = self.rule(self._find(ref, where), ref[:100], depth + 1)
        return name

    def _find(self, ref: str, where: str) -> Any:
        found = self._schema
        for part in ref.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise SchemaError(f"{where} refers to a definition that is not there")
        return found

    def _values(self, schema: dict[str, Any], where: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        types = _types_of(schema, where)
        _only(schema, where, "const", "enum", "type", *(k for t in types for k in _KEYWORDS[t]))
        if "const" in schema and "enum" in schema:
            raise SchemaError(f"{where} has both const and enum")
        if not isinstance(values, list) or len(values) > MAX_NODES:
            raise SchemaError(f"{where}.enum must be a list of at most {MAX_NODES} values")
        if any(k in schema for t in types for k in _KEYWORDS[t]):
            raise SchemaError(f"{where} has both values and limits")
        fitting = [v for v in values if not types or any(_TYPES[t](v) for t in types)]
        if not fitting:
            raise SchemaError(f"{where} has no value of its type")
        return either(literal(compact(value)) for value in fitting)

    def _combined(self, schema: dict[str, Any], keyword: str, where: str, depth: int) -> str:
        parts = schema[keyword]
        _only(schema, where, keyword, "type")
        if not isinstance(parts, list) or not parts:
            raise SchemaError(f"{where}.{keyword} must be a list of schemas")
        if keyword == "allOf" and len(parts) > 1:
            raise SchemaError(f"{where}.allOf of more than one schema cannot be enforced")
        if keyword == "oneOf" and not self._disjoint(parts):
            raise SchemaError(f"{where}.oneOf cannot be enforced: its schemas overlap; say anyOf")
        if "type" in schema:
            parts = [{"type": schema["type"], **p} if isinstance(p, dict) else p for p in parts]
        rules = [self.rule(p, f"{where}.{keyword}[{i}]", depth + 1) for i, p in enumerate(parts)]
        return either(rules)

    def _disjoint(self, parts: list[Any]) -> bool:
        """By type, or by different constants in one required member of objects."""
        resolved = [
            self._find(p["$ref"], "oneOf") if isinstance(p, dict) and "$ref" in p else p for p in parts
        ]
        if not all(isinstance(p, dict) for p in resolved):
            return False
        for part in resolved:
            _named_members(part, "oneOf")
        kinds = ["number" if p.get("type") == "integer" else p.get("type") for p in resolved]
        if all(isinstance(kind, str) for kind in kinds) and len(set(kinds)) == len(kinds):
            return True
        members = [{n for n in p.get("required", ()) if _constants(p, n) is not None} for p in resolved]
        for name in set.intersection(*members):
            said = [value for p in resolved for value in _constants(p, name) or ()]
            if len({compact(value) for value in said}) == len(said):
                return True
        return False

    def _typed(self, schema: dict[str, Any], where: str, depth: int) -> str:
        types = _types_of(schema, where)
        if not types:
            types = [t for t, words in _KEYWORDS.items() if words & schema.keys()]
            if not types:
                _only(schema, where)
                return "value"
            if len(types) > 1 and set(types) != {"integer", "number"}:
                raise SchemaError(f"{where} has limits of several types but no type")
            types = ["number"] if "number" in types else types
        _only(schema, where, "type", *(word for kind in types for word in _KEYWORDS[kind]))
        return either(self._of_type(kind, schema, where, depth) for kind in types)

    def _of_type(self, kind: str, schema: dict[str, Any], where: str, depth: int) -> str:
        if kind == "object":
            return self._object(schema, where, depth)
        if kind == "array":
            return self._array(schema, where, depth)
        if kind == "string":
            return _string(schema, where)
        if kind in ("integer", "number"):
            limits = {word: schema[word] for word in _KEYWORDS[kind] if word in schema}
            try:
                return integer_rule(limits) if kind == "integer" else number_rule(limits)
            except Unwritable as error:
                raise SchemaError(f"{where}: {error}") from None
        return '("true" | "false")' if kind == "boolean" else '"null"'

    def _object(self, schema: dict[str, Any], where: str, depth: int) -> str:
        members, required = _named_members(schema, where)
        more = schema.get("additionalProperties", True)
        unnamed = [name for name in required if name not in members]
        if unnamed and more is False:
            raise SchemaError(f"{where} requires a member that it does not allow")
        members = members | dict.fromkeys(unnamed, more or True)
        if not members:
            return self._map(more, where, depth)
        pairs: list[tuple[str, bool]] = []
        for name, part in members.items():
            value = self.rule(part, f"{where}.{name[:40]}", depth + 1)
            pairs.append((f'{literal(compact(name))} ":" ws {value}', name in required))
        return self.named("object", '"{" ws ' + self._members(pairs) + ' ws "}"')

    def _members(self, pairs: list[tuple[str, bool]]) -> str:
        """All required pairs and any of the others, in their order, with commas between."""
        # after[i]: what may follow once something was written; first[i]: while nothing was.
        after = first = '""'
        for pair, needed in reversed(pairs):
            one = self.named("pair", pair)
            if needed:
                after, first = f'"," ws {one} {after}', f"{one} {after}"
            else:
                first = f"({one} {after} | {first})"
                after = f'("," ws {one})? {after}'
            after, first = self.named("rest", after), self.named("rest", first)
        return first

    def _map(self, more: Any, where: str, depth: int) -> str:
        if more is False:
            return '"{" ws "}"'
        if more is True:
            return "object"
        pair = self.named("pair", f'string ":" ws {self.rule(more, f"{where}.*", depth + 1)}')
        return self.named("object", f'"{{" ws ({pair} ("," ws {pair}){{0,{MAX_REPEATS}}})? ws "}}"')

    def _array(self, schema: dict[str, Any], where: str, depth: int) -> str:
        low, high = _bounds(schema, "minItems", "maxItems", where)
        fixed = schema.get("prefixItems", [])
        if not isinstance(fixed, list):
            raise SchemaError(f"{where}.prefixItems must be a list")
        items = [self.rule(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(fixed)]
        more = schema.get("items", True)
        if high is not None:
            items = items[:high]
        if not items and more is not False:
            item = self.named("item", self.rule(more, f"{where}[]", depth + 1))
            return self.named("array", f'"[" ws {_list(item, low, high)} ws "]"')
        if low > len(items):
            if more is False:
                raise SchemaError(f"{where}.minItems is more than there may be")
            item = self.named("item", self.rule(more, f"{where}[]", depth + 1))
            items += [item] * (low - len(items))
        return self.named("array", '"[" ws ' + ' "," ws '.join(items) + ' ws "]"') if items else '"[" ws "]"'

    def named(self, kind: str, body: str) -> str:
        """A rule of its own: in place, bodies would be copied once per use."""
        if body in ('""',) or body.isidentifier():
            return body
        name = f"{kind}-{len(self.rules)}"
        self.add(name, body)
        return name

    def add(self, name: str, body: str) -> None:
        self.rules[name] = body


def _named_members(schema: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """(properties, required). Raises SchemaError where they are not what they must be."""
    members, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(members, dict) or not isinstance(required, list):
        raise SchemaError(f"{where}: properties must be an object and required a list")
    if not all(isinstance(name, str) for name in required):
        raise SchemaError(f"{where}.required must be a list of names")
    return members, required


def _string(schema: dict[str, Any], where: str) -> str:
    kind = schema.get("format")
    low, high = _bounds(schema, "minLength", "maxLength", where)
    if "pattern" in schema:
        return _pattern(schema, where, low, high)
    if isinstance(kind, str) and kind in _FORMATS:
        if low or high is not None:
            raise SchemaError(f"{where} has both a format and a length")
        return _FORMATS[kind]
    if low == 0 and high is None:
        return "string"
    return f'"\\"" char{{{low},{"" if high is None else high}}} "\\""'


def _pattern(schema: dict[str, Any], where: str, low: int, high: int | None) -> str:
    if not isinstance(schema["pattern"], str):
        raise SchemaError(f"{where}.pattern must be a string")
    if isinstance(schema.get("format"), str) and schema["format"] in _FORMATS:
        raise SchemaError(f"{where} has both a format and a pattern")
    try:
        written = pattern_rule(schema["pattern"], "char")
    except UnwritablePattern as error:
        raise SchemaError(f"{where}.pattern cannot be enforced: {error}") from None
    if written.least < low or (high is not None and (written.most is None or written.most > high)):
        raise SchemaError(f"{where}: its pattern allows lengths that minLength or maxLength do not")
    return f'"\\"" {written.rule} "\\""'


def _list(item: str, low: int, high: int | None) -> str:
    if high == 0:
        return '""'
    repeats = f"{{{max(0, low - 1)},{'' if high is None else high - 1}}}"
    several = item if high == 1 else f'{item} ("," ws {item}){repeats}'
    return several if low else f"({several})?"


def _bounds(schema: dict[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    """Raises SchemaError for what are no limits, or none that can be kept."""
    least, most = schema.get(low, 0), schema.get(high)
    if not _TYPES["integer"](least) or not (most is None or _TYPES["integer"](most)) or least < 0:
        raise SchemaError(f"{where}: {low} and {high} must be whole numbers of at least 0")
    if least > MAX_REPEATS:
        raise SchemaError(f"{where}.{low} is above {MAX_REPEATS}")
    if most is not None and most < least:
        raise SchemaError(f"{where}: {high} is below {low}")
    return least, None if most is None else min(most, MAX_REPEATS)


def _types_of(schema: dict[str, Any], where: str) -> list[str]:
    said = schema.get("type")
    types = [] if said is None else [said] if isinstance(said, str) else said
    if not isinstance(types, list) or not all(isinstance(t, str) and t in _TYPES for t in types):
        raise SchemaError(f"{where}.type is none of {', '.join(_TYPES)}")
    return types


def _only(schema: dict[str, Any], where: str, *allowed: str) -> None:
    """Raises SchemaError for the first keyword that would be ignored."""
    for word in schema:
        if word not in allowed and word not in _ANNOTATIONS:
            known = word in _GENERAL or any(word in words for words in _KEYWORDS.values())
            place = "does not go with the rest of it" if known else "cannot be enforced"
            raise SchemaError(f"{where}.{word[:40]} {place}")


def _constants(schema: dict[str, Any], member: str) -> list[Any] | None:
    part = schema.get("properties", {}).get(member)
    if not isinstance(part, dict):
        return None
    found = [part["const"]] if "const" in part else part.get("enum")
    return found if isinstance(found, list) else None


def either(rules: Iterable[str]) -> str:
    found = list(dict.fromkeys(rules))
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
