"""Canonical bytes: JSON to the letter, whatever the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.routing.domain import Message, Role
from tidegate.routing.prefix import canonical_bytes, parse_canonical

TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('\\"\n\r\t\b\f\0\x1f\x7f'))
)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(Role), TEXT, TEXT))


@given(MESSAGES)
def test_each_message_is_one_compact_json_line_and_comes_back(messages: list[Message]) -> None:
    data = canonical_bytes(messages)
    lines = [
        json.dumps([m.role.value, m.name, m.content], ensure_ascii=False, separators=(",", ":"))
        for m in messages
    ]
    assert data.decode() == "".join(f"{line}\n" for line in lines)
    assert parse_canonical(data) == tuple(messages)


@given(MESSAGES, MESSAGES)
def test_more_turns_only_add_bytes(before: list[Message], after: list[Message]) -> None:
    assert canonical_bytes([*before, *after]) == canonical_bytes(before) + canonical_bytes(after)


def test_a_lone_surrogate_is_an_error_and_not_other_bytes() -> None:
    with pytest.raises(UnicodeEncodeError):
        canonical_bytes([Message(Role.USER, "\ud800")])
