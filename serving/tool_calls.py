"""Calls in answers, in every syntax of serving/tool_syntax.py. Pure.

An answer is text, calls, or text and then calls: these begin with an opening of a syntax anywhere in it, or
with the brace of a bare call at its beginning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from serving.tool_syntax import ARGUMENTS, CLOSING, NAME, PARAMETERS

_OPENINGS = re.compile("|".join(map(re.escape, CLOSING)))
_LONGEST = max(map(len, CLOSING))
# A bare call's first member: some models say the call's type or id before its name.
_FIRST_MEMBERS = (NAME, ARGUMENTS, PARAMETERS, "type", "id")
_BARE = re.compile(r'\{\s*(?:"(?P<member>[^"\\]*)(?P<whole>")?)?')
_NAMED = {
    "[TOOL_CALLS]": re.compile(r"([\w.-]{1,64})\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)"),
    "<function=": re.compile(r"([\w.-]{1,64})>\s*(?=\{)"),
}
_SPACE, _BETWEEN = re.compile(r"\s*"), re.compile(r"[ \t\r\n;,]*")
# A longer beginning is none of a call.
_MAX_HEAD = 1024
# Without it the next thing is no call. "<|tool_call|>" opens a list that nothing closes, or a call that is.
_MUST_CLOSE = ("<tool_call>", "<function=")


def _finite(number: str) -> float:
    """Raises ValueError for what JSON cannot say, or what would be written as that: NaN, Infinity, 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def calls_in(text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of each call that the text consists of; none in a blank one.

    Raises ValueError when it is anything else, or cut off. What closes the last call may be missing: it may
    be what the answer was ended at.
    """
    return list(_calls(text.strip()))


def _calls(text: str) -> Iterator[tuple[str, Any]]:
    at = 0
    while at < len(text):
        found = _OPENINGS.match(text, at)
        opening = found[0] if found else ""
        at = _past(_SPACE, text, at + len(opening))
        named = _NAMED[opening].match(text, at) if opening in _NAMED else None
        if named:
            arguments, at = _DECODER.raw_decode(text, named.end())
            yield named[1], arguments
        else:
            value, at = _DECODER.raw_decode(text, at)
            yield from map(_call, value if opening and isinstance(value, list) else [value])
        at = _past(_BETWEEN, text, at)
        closing = CLOSING.get(opening, "")
        if text.startswith(closing, at):
            at = _past(_BETWEEN, text, at + len(closing))
        elif at < len(text) and opening in _MUST_CLOSE:
            raise ValueError("a call is not closed")


def _past(run: re.Pattern[str], text: str, at: int) -> int:
    found = run.match(text, at)
    return found.end() if found else at


def _call(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get(NAME), str):
        raise ValueError("not a call")
    if ARGUMENTS not in value and PARAMETERS not in value:
        raise ValueError("a call without arguments")
    return value[NAME], value[ARGUMENTS] if ARGUMENTS in value else value[PARAMETERS]


def begins_bare(text: str) -> bool | None:
    """Whether an answer that begins like this begins with a bare call; None while that cannot be said."""
    text = text.lstrip()
    found = _BARE.match(text)
    if not found:
        return False if text else None
    member, whole = found["member"], found["whole"]
    if whole:
        return member in _FIRST_MEMBERS
    if found.end() < len(text):
        return False
    return None if any(name.startswith(member or "") for name in _FIRST_MEMBERS) else False


class CallSplitter:
    """Parts an answer, as it comes, into the text before any calls and the calls, which are of `names`."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._in_calls = False
        self._began = False

    def feed(self, text: str) -> str:
        """What is text for certain."""
        self._held += text
        if self._in_calls:
            return ""
        if not self._began and (bare := begins_bare(self._held)) is not False:
            self._in_calls = bool(bare)
            return ""
        found = _OPENINGS.search(self._held)
        shown = found.start() if found else len(self._held) - _half_opening(self._held)
        self._in_calls = found is not None
        # White space that calls follow is no text.
        if not self._began and not self._held[:shown].strip():
            return ""
        self._began = True
        given, self._held = self._held[:shown], self._held[shown:]
        return given

    def end(self) -> tuple[str, list[tuple[str, Any]]]:
        """What was held back: as text, or as the calls (name, arguments) that it is."""
        held, self._held = self._held, ""
        try:
            calls = calls_in(held) if self._in_calls else []
        except (ValueError, RecursionError):
            calls = []
        if not calls or any(name not in self._names for name, _ in calls):
            return held, []
        return "", calls


class ArgumentsSplitter:
    """Takes the arguments out of an answer that is one call of `name`, as it comes."""

    def __init__(self, name: str) -> None:
        opening, said = _OPENINGS.pattern, re.escape(json.dumps(name))
        # No two runs of white space side by side: which of them takes what would be tried in every way.
        in_object = (
            rf'(?:(?:{opening})\s*)?(?:\[\s*)?\{{\s*(?:"type"\s*:\s*"\w*"\s*,\s*)?'
            rf'"{NAME}"\s*:\s*{said}\s*,\s*"(?:{ARGUMENTS}|{PARAMETERS})"\s*:'
        )
        by_name = rf"(?:{opening})\s*{re.escape(name)}(?:\[CALL_ID\]\w*)?(?:\[ARGS\]|>)?"
        self._head = re.compile(rf"\s*(?:{in_object}|{by_name})\s*(?=\{{)")
        self._held = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self.began = self.ended = False

    def feed(self, text: str) -> str:
        """What belongs to the arguments."""
        if self.ended:
            return ""
        if not self.began:
            self._held += text
            head = self._head.match(self._held) if len(self._held) < _MAX_HEAD + len(text) else None
            if head is None:
                return ""
            self.began = True
            text, self._held = self._held[head.end() :], ""
        return text[: self._end_in(text)]

    def end(self) -> str:
        """What was held back because no arguments began."""
        return self._held

    def _end_in(self, text: str) -> int:
        """Where the object ends; the text's length if beyond it."""
        for at, char in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = char == "\\", char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if self._depth == 0:
                    self.ended = True
                    return at
        return len(text)


def _half_opening(text: str) -> int:
    """Length of the longest end of the text that may become an opening."""
    for length in range(min(len(text), _LONGEST - 1), 0, -1):
        if any(opening.startswith(text[-length:]) for opening in CLOSING):
            return length
    return 0
