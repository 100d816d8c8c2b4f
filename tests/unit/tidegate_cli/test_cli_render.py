"""Tables and JSON."""

from __future__ import annotations

import json

import pytest

import tidegate
from tidegate_cli.render import as_json, ms, shortened, table


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_are_right_aligned() -> None:
    text = table(("node", "ttft", "why"), [("edge-a", "9 ms", "near"), ("c", "1200 ms", "far away")])
    assert text.splitlines() == [
        "node       ttft  why",
        "------  -------  --------",
        "edge-a     9 ms  near",
        "c       1200 ms  far away",
    ]


def test_a_column_of_dashes_or_words_is_no_number() -> None:
    text = table(("a", "b"), [("-", "2 to 3 ms"), ("-", "x")])
    assert text.splitlines()[2] == "-  2 to 3 ms"


def test_no_rows_is_a_header_alone() -> None:
    assert table(("model", "digest"), []).splitlines() == ["model  digest", "-----  ------"]


def test_last_column_is_shortened_to_the_width() -> None:
    why = "cheapest that qualifies, fastest of its cost (edge): TTFT 120 ms"
    line = table(("node", "why"), [("edge-a", why)], width=60).splitlines()[2]
    assert line == "edge-a  cheapest that qualifies, fastest of its cost…"
    assert len(line) <= 60
    assert table(("node", "why"), [("edge-a", why)]).splitlines()[2].endswith("TTFT 120 ms")


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("fits", 4, "fits"),
        ("one two three", 9, "one two…"),
        ("one two three", 8, "one two…"),
        ("one two, three", 10, "one two…"),
        ("unbrokenunbroken", 8, "unbroke…"),
        # A word boundary far back would leave half the line empty.
        ("a unbrokenunbroken", 10, "a unbroke…"),
        ("", 5, ""),
    ],
)
def test_shortening_ends_between_words(text: str, room: int, expected: str) -> None:
    assert shortened(text, room) == expected
    assert len(shortened(text, room)) <= max(room, 0)


def test_milliseconds() -> None:
    assert ms(None) == "-"
    assert ms(12.6) == "13 ms"


def test_json_has_plain_values_of_domain_types() -> None:
    route = tidegate.Route("id", "edge-a", tidegate.Tier.EDGE, "m", "d")
    value = json.loads(as_json({"route": route, "words": frozenset({"b", "a"}), "pairs": ((1, 2.5),)}))
    assert value["route"]["tier"] == "edge"
    assert value["words"] == ["a", "b"]
    assert value["pairs"] == [[1, 2.5]]
    assert "é" in as_json("é")
