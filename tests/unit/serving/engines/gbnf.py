"""A small reader of llama.cpp's grammar language: whether a text is of a grammar, and random texts of it."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

# A part tells where it may end in a text that it begins at a place, and writes a text of its own.
Ends = Callable[[str, int], frozenset[int]]
_TOKEN = re.compile(
    r'\s+|(?P<text>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-zA-Z0-9-]+)'
    r"|(?P<repeat>\{(?P<low>\d+)(?P<comma>,(?P<high>\d*))?\})|(?P<sign>[()|?*+])"
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.))")


def _unescaped(text: str) -> str:
    plain = {"n": "\n", "r": "\r", "t": "\t"}
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else plain.get(m[2], m[2]), text)


class Part(NamedTuple):
    ends: Ends
    draw: Callable[[random.Random, int], str]


class Gbnf:
    def __init__(self, grammar: str) -> None:
        self._bodies = dict(line.split(" ::= ", 1) for line in grammar.strip().split("\n"))
        self._rules: dict[str, Part] = {}
        self._parts: dict[str, Part] = {}

    def takes(self, text: str) -> bool:
        # A text's rule holds itself once a character.
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)
        try:
            return len(text) in self._rule("root").ends(text, 0)
        finally:
            sys.setrecursionlimit(limit)

    def draw(self, rng: random.Random) -> str:
        return self._rule("root").draw(rng, 0)

    def _rule(self, name: str) -> Part:
        """By its name: a rule may hold itself."""

        @cache
        def ends(text: str, at: int) -> frozenset[int]:
            return self._body(name).ends(text, at)

        if name not in self._rules:
            self._rules[name] = Part(ends, lambda rng, depth: self._body(name).draw(rng, depth + 1))
        return self._rules[name]

    def _body(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = self._either(_tokens(self._bodies[name]))
        return self._parts[name]

    def _either(self, tokens: Iterator[re.Match[str]]) -> Part:
        choices, sequence = [], list[Part]()
        for token in tokens:
            kind = token.lastgroup
            if token["sign"] == ")":
                break
            if token["sign"] == "|":
                choices.append(_sequence(sequence))
                sequence = []
            elif token["sign"] == "(":
                sequence.append(self._either(tokens))
            elif kind == "text":
                sequence.append(_literal(_unescaped(token["text"][1:-1])))
            elif kind == "set":
                sequence.append(_of_set(token["set"]))
            elif kind == "name":
                sequence.append(self._rule(token["name"]))
            else:
                low, high = _times(token)
                sequence.append(_repeated(sequence.pop(), low, high))
        return _choice([*choices, _sequence(sequence)])


def _tokens(body: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(body):
        token = _TOKEN.match(body, at)
        assert token, body[at:]
        at = token.end()
        if token.lastgroup:
            yield token


def _times(token: re.Match[str]) -> tuple[int, int]:
    if token["repeat"]:
        high = token["high"] if token["comma"] else token["low"]
        return int(token["low"]), int(high) if high else 10**6
    return {"?": (0, 1), "*": (0, 10**6), "+": (1, 10**6)}[token["sign"]]


def _literal(text: str) -> Part:
    return Part(
        lambda t, at: frozenset([at + len(text)] if t.startswith(text, at) else []), lambda rng, depth: text
    )


def _of_set(source: str) -> Part:
    allowed = re.compile(source, re.DOTALL)
    some = [c for c in map(chr, (*range(9, 127), 0xE9, 0x1F44B)) if allowed.fullmatch(c)]
    return Part(
        lambda t, at: frozenset([at + 1] if allowed.match(t, at) else []), lambda rng, depth: rng.choice(some)
    )


def _sequence(parts: list[Part]) -> Part:
    def ends(text: str, at: int) -> frozenset[int]:
        found = frozenset([at])
        for part in parts:
            found = frozenset(end for place in found for end in part.ends(text, place))
        return found

    return Part(ends, lambda rng, depth: "".join(part.draw(rng, depth) for part in parts))


def _choice(parts: list[Part]) -> Part:
    def draw(rng: random.Random, depth: int) -> str:
        return rng.choice(parts).draw(rng, depth)

    return Part(lambda t, at: frozenset(end for part in parts for end in part.ends(t, at)), draw)


def _repeated(part: Part, low: int, high: int) -> Part:
    def ends(text: str, at: int) -> frozenset[int]:
        found, fresh, count = set[int](), {at}, 0
        while fresh and count <= high:
            if count >= low:
                fresh -= found
                found |= fresh
            fresh = {end for place in fresh for end in part.ends(text, place)}
            count += 1
        return frozenset(found)

    def draw(rng: random.Random, depth: int) -> str:
        most = low if depth > 40 else min(high, low + 3)
        return "".join(part.draw(rng, depth) for _ in range(rng.randint(low, most)))

    return Part(ends, draw)
