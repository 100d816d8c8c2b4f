"""Tokens are found, told apart, and never shown."""

from __future__ import annotations

import pytest

from serving.security import TokenTable, bearer


def test_lookup_finds_each_token_and_no_other() -> None:
    table = TokenTable({"alpha": 1, "beta": 2})
    assert table.lookup("alpha") == 1
    assert table.lookup("beta") == 2
    assert table.lookup("alph") is None
    assert table.lookup("") is None
    assert table.lookup(None) is None
    assert table.lookup("alpha\udcff") is None


def test_empty_and_doubled_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TokenTable({"": 1})
    with pytest.raises(ValueError, match="twice"):
        TokenTable([("a", 1), ("a", 2)])


def test_tokens_are_not_kept_or_shown() -> None:
    table = TokenTable({"very-secret": "value"})
    assert repr(table) == "TokenTable(1 tokens)"
    assert "very-secret" not in str([getattr(table, slot) for slot in table.__slots__])


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer(header: str | None, token: str | None) -> None:
    assert bearer(header) == token
