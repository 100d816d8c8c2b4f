"""Patterns of schemas: every text of the grammar matches, and what cannot be written is refused by name."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.json_grammar import grammar_of
from serving.engines.llama_cpp.constraint import check_grammar
from serving.engines.pattern_grammar import UnwritablePattern, Written, pattern_rule

_PARTS = re.compile(r'"((?:\\.|[^"])*)"|(\[[^\]]*\]|\{[^}]*\}|[()|?*+])|\s+')
# Stands for any character: it is one that no pattern below asks for.
CHAR = "[#]"

PATTERNS = [
    "^[A-Z]{2,3}-\\d{4}$",
    "^(?:https?://)?[a-z0-9.-]+\\.(com|org)(/[^\\s?#]*)?$",
    "^\\+?[0-9 ()\\-]{7,15}$",
    "^[^@\\s]+@[^@\\s]+$",
    "^a|b$|^c$",
    "mid",
    "^$",
    '^"quoted\\\\ ["\\\\]\\n?$',
    "^(ab|c)*d+?.{0,2}$",
    "^\\W\\D\\S\\w\\s[\\w-]$",
    "^[\\x41-\\u00E9\\]^-]{1,4}$",
    "^v(0|[1-9]\\d*)(\\.(0|[1-9]\\d*)){2}$",
    "^(a|){0,1}x{0}$",
]


def regex(rule: str) -> re.Pattern[str]:
    """These rules use only what regular expressions have, too."""
    parts = (re.escape(json.loads(f'"{text}"')) if text else part for text, part in _PARTS.findall(rule))
    return re.compile("".join(parts))


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_every_text_of_the_grammar_matches_the_pattern(pattern: str, data: st.DataObject) -> None:
    written = pattern_rule(pattern, CHAR)
    text = data.draw(st.from_regex(regex(written.rule), fullmatch=True))
    value = json.loads(f'"{text}"')
    assert re.search(pattern, value)
    assert re.search(pattern, value, re.ASCII)
    assert written.least <= len(value) <= (len(value) if written.most is None else written.most)


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("^[a-c]+$", ["a", "abc"], ["", "d", "aé"]),
        ("^.$", ["x", "é", '\\"'], ["xy", "\\n", "😀"]),
        ("x", ["x", "#x##"], ["##"]),
        ("^(x|yz){1,2}$", ["x", "yzx"], ["xxx"]),
    ],
)
def test_what_the_grammar_takes(pattern: str, accepted: list[str], refused: list[str]) -> None:
    rule = regex(pattern_rule(pattern, CHAR).rule)
    assert all(rule.fullmatch(text) for text in accepted)
    assert not any(rule.fullmatch(text) for text in refused)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "look around"),
        ("(?<name>a)", "look around"),
        ("(a)\\1", r"\\1"),
        ("\\bword", r"\\b"),
        ("\\p{L}", r"\\p"),
        ("(a*)*", "may be empty"),
        ("(a?|b){3}", "may be empty"),
        ("a**", "repeated"),
        ("a{1001}", "more than 1000"),
        ("(a{500}b{500}){2}", "more than 1000"),
        ("(((a){1,12}){1,12}){1,12}", "inside of each other"),
        ("(a|ab|abc|b){1,60}", "inside of each other"),
        ("(ca?a?a?){1,80}", "inside of each other"),
        ("[ab]{1,300}a{1,300}", "after another"),
        ("a{2,1}", "reversed"),
        ("a{x}", "does not begin"),
        ("a^b", "does not belong"),
        ("a$b", "does not belong"),
        ("(a$)", "inside of a group"),
        ("(a", "not closed"),
        ("a)", "does not belong"),
        ("[a", "too early"),
        ("[]a]", "begins with"),
        ("[z-a]", "no order"),
        ("[\\d-z]", "no order"),
        ("\\", "too early"),
        ("\\x4", "hexadecimal"),
        ("\\u0000", "control"),
        ("😀+", "beyond"),
        ("(" * 17 + "a" + ")" * 17, "deep"),
        ("a" * 513, "longer"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(pattern: str, why: str) -> None:
    with pytest.raises(UnwritablePattern, match=why):
        pattern_rule(pattern, CHAR)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z0-9._-]{1,64}@[a-z0-9-]{1,255}\.[a-z]{2,20}$",
        r"^(red|green|blue)(, (red|green|blue)){0,60}$",
        r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$",
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?Z$",
    ],
)
def test_what_people_write_is_not_too_much(pattern: str) -> None:
    assert pattern_rule(pattern, CHAR).rule


@given(st.text(alphabet="ab^$|()[]{}*+?.\\d-,1:", max_size=12))
def test_whatever_the_pattern_there_is_a_rule_that_keeps_to_it_or_a_clear_error(pattern: str) -> None:
    try:
        written = pattern_rule(pattern, CHAR)
    except UnwritablePattern:
        return
    assert isinstance(written, Written)
    re.compile(pattern)
    check_grammar(grammar_of(json.dumps({"type": "string", "pattern": pattern})))
