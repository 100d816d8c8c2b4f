"""Regular expressions of JSON schemas as GBNF, for the inside of a JSON string. Pure.

Only what every dialect reads alike: literals, classes, `.`, `\\d \\w \\s`, groups, `|`, and quantifiers; `^`
and `$` at the ends of whole alternatives. Where dialects differ (what is white space, what is a letter) the
narrower reading is written, so that each text is valid for all of them. Everything else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

MAX_PATTERN_CHARS = 512
# Of all bounded repetitions together: llama.cpp writes them out.
MAX_WRITTEN = 1000
# Where a text can be read in many ways, llama.cpp keeps every reading and tries tokens against all of them.
# So there are bounds for repetitions inside of each other, and for several in a row.
MAX_NESTED = 200
MAX_IN_A_ROW = 400
_MAX_DEPTH = 16

# Sorted, disjoint (first, last) code points.
_Ranges = tuple[tuple[int, int], ...]

_DIGITS: _Ranges = ((0x30, 0x39),)
_WORD: _Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: _Ranges = ((0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20))
# What is no digit, letter or white space for anybody is so among these.
_PLAIN: _Ranges = ((0x21, 0x7E),)
# All that can stand in a string with two bytes of UTF-16, without line ends and what is no character.
_ANY: _Ranges = ((0x09, 0x09), (0x20, 0x7E), (0xA0, 0x2027), (0x202A, 0xD7FF), (0xE000, 0xFFFD))
_SHORT = {"t": 0x09, "n": 0x0A, "r": 0x0D, "f": 0x0C}
_PUNCTUATION = frozenset("^$\\.*+?()[]{}|/-\"'!#%&,:;<=>@_`~ ")
_ESCAPED = {0x09: r"\t", 0x0A: r"\n", 0x0C: r"\f", 0x0D: r"\r", 0x22: r"\"", 0x5C: r"\\"}


class UnwritablePattern(ValueError):
    """A pattern that cannot be enforced; the message says what of it, and quotes no more than a character."""


@dataclass(frozen=True, slots=True)
class Written:
    """An expression, and how many characters its texts have; `most` None is without end.

    `readings` bounds in how many places of it a text can be at once, in one repetition of it.
    """

    rule: str
    least: int
    most: int | None
    readings: int = 1


def pattern_rule(pattern: str, char: str) -> Written:
    """What stands between the quotes; `char` is the rule of any character. Raises UnwritablePattern."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise UnwritablePattern(f"it is longer than {MAX_PATTERN_CHARS} characters")
    return _Reader(pattern, Written(f"{char}*", 0, None)).whole()


class _Reader:
    """Recursive descent, one method per level."""

    def __init__(self, pattern: str, anything: Written) -> None:
        self._pattern = pattern
        self._anything = anything
        self._at = 0
        self._written = 0

    def whole(self) -> Written:
        found = []
        while True:
            begins = self._take("^")
            parts = [] if begins else [self._anything]
            parts.append(self._sequence(0))
            if not self._take("$"):
                parts.append(self._anything)
            found.append(_after_another(parts))
            if not self._take("|"):
                break
        if self._at < len(self._pattern):
            raise UnwritablePattern(f"{self._pattern[self._at]!r} does not belong where it stands")
        return _either(found)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if self._pattern.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise UnwritablePattern("it ends too early")
        self._at += 1
        return self._pattern[self._at - 1]

    def _sequence(self, depth: int) -> Written:
        parts: list[Written] = []
        while (char := self._peek()) and char not in "|)$":
            parts.append(self._repeated(self._one(depth)))
        return _after_another(parts)

    def _one(self, depth: int) -> Written:
        char = self._next()
        if char == "(":
            return self._group(depth + 1)
        if char == "[":
            return _class(self._members())
        if char == ".":
            return _class(_ANY)
        if char == "\\":
            return _class(self._escaped())
        if char in "^*+?{}]":
            raise UnwritablePattern(f"{char!r} does not belong where it stands")
        return _class(_single(char))

    def _group(self, depth: int) -> Written:
        if depth > _MAX_DEPTH:
            raise UnwritablePattern(f"its groups are more than {_MAX_DEPTH} deep")
        if self._take("?") and not self._take(":"):
            raise UnwritablePattern("groups that look around, have names or options cannot be written")
        found = [self._sequence(depth)]
        while self._take("|"):
            found.append(self._sequence(depth))
        if self._peek() == "$":
            raise UnwritablePattern("'$' inside of a group cannot be written")
        if not self._take(")"):
            raise UnwritablePattern("a group is not closed")
        return _either(found)

    def _repeated(self, one: Written) -> Written:
        bounds = self._quantifier()
        if bounds is None:
            return one
        self._take("?")  # takes as little as possible: the same texts
        if self._peek() and self._peek() in "*+?{":
            raise UnwritablePattern("a repetition is repeated")
        least, most = bounds
        if (least, most) == (0, 1):
            return one if one.least == 0 else replace(one, rule=f"({one.rule})?", least=0)
        if one.least == 0:
            raise UnwritablePattern("it repeats what may be empty")
        self._written += most if most is not None else least
        if self._written > MAX_WRITTEN:
            raise UnwritablePattern(f"its repetitions come to more than {MAX_WRITTEN}")
        times = 1 if least == most and one.readings == 1 else most if most is not None else least
        readings = one.readings * max(times, 1)
        if readings > MAX_NESTED and one.readings > 1:
            raise UnwritablePattern(f"repetitions inside of each other come to more than {MAX_NESTED}")
        sign = f"{{{least},{'' if most is None else most}}}"
        if most is None and least < 2:
            sign = "+" if least else "*"
        longest = None if most is None or one.most is None else most * one.most
        rule = f"({one.rule}){sign}" if most != 0 else '""'
        return Written(rule, least * one.least, longest, readings)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        if not self._take("{"):
            return None
        inside, closed, _ = self._pattern[self._at :].partition("}")
        low, comma, high = inside.partition(",")
        numbers = [number for number in (low, high) if number or number is low]
        if not closed or not all(n.isascii() and n.isdecimal() and len(n) < 5 for n in numbers):
            raise UnwritablePattern("'{' does not begin a repetition")
        self._at += len(inside) + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise UnwritablePattern("a repetition's limits are reversed")
        return least, most

    def _escaped(self) -> _Ranges:
        char = self._next()
        if char in "dws":
            return {"d": _DIGITS, "w": _WORD, "s": _SPACE}[char]
        if char in "DWS":
            return _without(_PLAIN, {"D": _DIGITS, "W": _WORD, "S": _SPACE}[char])
        if char in _SHORT:
            return ((_SHORT[char], _SHORT[char]),)
        if char in "xu":
            digits = self._pattern[self._at : self._at + (2 if char == "x" else 4)]
            if len(digits) < (2 if char == "x" else 4) or not set(digits) <= set("0123456789abcdefABCDEF"):
                raise UnwritablePattern(f"'\\{char}' needs hexadecimal digits")
            self._at += len(digits)
            return _single(chr(int(digits, 16)))
        if char not in _PUNCTUATION:
            raise UnwritablePattern(
                f"'\\{char}' cannot be written" if char.isascii() else "an escape is unknown"
            )
        return _single(char)

    def _members(self) -> _Ranges:
        negated, shorthand = self._take("^"), False
        found: list[tuple[int, int]] = []
        if self._peek() == "]":
            raise UnwritablePattern("a class begins with ']', which dialects read differently")
        while not self._take("]"):
            first, short = self._member()
            shorthand = shorthand or short
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last, other = self._member()
                if short or other or last[0][0] < first[0][0]:
                    raise UnwritablePattern("a range of a class has no order")
                found.append((first[0][0], last[0][0]))
            else:
                found += first
        if not negated:
            return _merged(found)
        return _without(_PLAIN if shorthand else _ANY, _merged(found))

    def _member(self) -> tuple[_Ranges, bool]:
        """Code points, and whether they are more than one."""
        char = self._next()
        if char != "\\":
            return _single(char), False
        shorthand = self._peek() in set("dwsDWS")
        return self._escaped(), shorthand


def _single(char: str) -> _Ranges:
    code = ord(char)
    if code > 0xFFFF or 0xD800 <= code <= 0xDFFF:
        raise UnwritablePattern("characters beyond U+FFFF count as one or as two: they cannot be written")
    return ((code, code),)


def _merged(ranges: Iterable[tuple[int, int]]) -> _Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _without(ranges: _Ranges, taken: _Ranges) -> _Ranges:
    left = list(ranges)
    for low, high in taken:
        parts = [((first, min(last, low - 1)), (max(first, high + 1), last)) for first, last in left]
        left = [part for pair in parts for part in pair if part[0] <= part[1]]
    return tuple(left)


def _class(ranges: _Ranges) -> Written:
    """One character of these, as JSON writes it."""
    controls: _Ranges = (
        (0x00, 0x1F),
        (0x22, 0x22),
        (0x5C, 0x5C),
        (0x7F, 0x9F),
        (0xD800, 0xDFFF),
        (0xFFFE, 0xFFFF),
    )
    direct = _without(ranges, controls)
    parts = []
    if len(direct) == 1 and direct[0][0] == direct[0][1]:
        parts.append(_quoted(chr(direct[0][0])))
    elif direct:
        spans = (_code(a) if a == b else f"{_code(a)}-{_code(b)}" for a, b in direct)
        parts.append(f"[{''.join(spans)}]")
    parts += [
        _quoted(text)
        for code, text in _ESCAPED.items()
        if any(first <= code <= last for first, last in ranges)
    ]
    if not parts:
        raise UnwritablePattern("it asks for control characters")
    return Written(parts[0] if len(parts) == 1 else f"({' | '.join(parts)})", 1, 1)


def _code(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x80 else f"\\u{code:04X}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _after_another(parts: list[Written]) -> Written:
    if not parts:
        return Written('""', 0, 0)
    most = None if any(part.most is None for part in parts) else sum(part.most or 0 for part in parts)
    varied = [part.readings for part in parts if part.readings > 1 or part.least == 0]
    if len(varied) > 1 and sum(varied) > MAX_IN_A_ROW:
        raise UnwritablePattern(f"repetitions after another come to more than {MAX_IN_A_ROW}")
    rule, least = " ".join(part.rule for part in parts), sum(part.least for part in parts)
    return Written(rule, least, most, max(sum(varied), 1))


def _either(found: list[Written]) -> Written:
    if len(found) == 1:
        return found[0]
    most = None if any(each.most is None for each in found) else max(each.most or 0 for each in found)
    rule, least = f"({' | '.join(each.rule for each in found)})", min(each.least for each in found)
    readings = [each.readings for each in found]
    return Written(rule, least, most, max(readings) if _differ_at_once(found) else sum(readings))


def _differ_at_once(found: list[Written]) -> bool:
    """Whether the first character tells which of them a text is."""
    firsts = {each.rule[1 : 3 if each.rule[1:2] == "\\" else 2] for each in found if each.rule[0] == '"'}
    return len(firsts - {'"'}) == len(found)
