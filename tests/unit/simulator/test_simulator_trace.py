"""Traces as files say them: what is wrong with one is named with its line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from simulator_helpers import NODE, fleet_of, play

from simulator.fleet import parse_fleet
from simulator.tables import BadInput
from simulator.trace import Recorded, draw, read_trace


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("synthetic:-2:10", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:2:inf", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:2", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:0.001:1", None, "no requests"),
        ("t.csv", None, "t.csv: No such file"),
        ("t.csv", "a,b\n1,2\n", "missing: TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "line 2: a date"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("t.jsonl", '{"timestamp": 1}\n', "line 1: input_length is missing"),
        ("t.jsonl", "[]\n", "line 1: JSON with timestamp"),
        ("t.jsonl", "\n \n", "no requests"),
        ("t.csv", "x" * 200_000, "line 1: field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=said):
        read_trace(name if text is None and ":" in name else str(tmp_path / name))


CSV = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,100,5\n"
ROW = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2023-11-16 18:17:04,-5,5", "ContextTokens must be whole and from 0 to"),
        ("2023-11-16 18:17:04,5,-5", "GeneratedTokens must be whole and from 0 to"),
        (f"2023-11-16 18:17:04,{'9' * 400},5", "ContextTokens must be whole and from 0 to"),
        (f"2023-11-16 18:17:04,{'9' * 9000},5", "a date and two whole numbers"),
        ("2023-11-16 18:17:04,nan,5", "a date and two whole numbers"),
        ("2023-11-16 18:17:04,5", "a date and two whole numbers"),
        (f"2023-11-16 18:17:04,{'x' * 200_000},5", "field larger than field limit"),
    ],
)
def test_a_line_of_a_csv_that_means_nothing_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{CSV}{line}\n")
    with pytest.raises(BadInput, match=rf"t\.csv: line 3: {said}"):
        read_trace(str(path))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"timestamp": 1e400}', "timestamp must be a number of ms"),
        ('{"timestamp": NaN}', "timestamp must be a number of ms"),
        ('{"timestamp": "0"}', "timestamp must be a number of ms"),
        (f'{{"timestamp": 1{"0" * 400}}}', "timestamp must be a number of ms"),
        ('{"input_length": 1e400}', "input_length must be whole and from 0 to"),
        ('{"input_length": NaN}', "input_length must be whole and from 0 to"),
        ('{"input_length": -5}', "input_length must be whole and from 0 to"),
        ('{"output_length": -5}', "output_length must be whole and from 0 to"),
        ('{"output_length": 2.5}', "output_length must be whole and from 0 to"),
        (f'{{"output_length": 1{"0" * 400}}}', "output_length must be whole and from 0 to"),
        ('{"hash_ids": [-1]}', "hash_ids must be whole and from 0 to"),
        ('{"hash_ids": [1e400]}', "hash_ids must be whole and from 0 to"),
        (f'{{"hash_ids": [1{"0" * 400}]}}', "hash_ids must be whole and from 0 to"),
        ('{"hash_ids": [[]]}', "hash_ids must be whole and from 0 to"),
        ('{"hash_ids": 7}', "JSON with timestamp"),
        (f'{{"more": {"[" * 100_000}', "JSON with timestamp"),
        (f'{{"more": 1{"0" * 9000}}}', "JSON with timestamp"),
    ],
)
def test_a_line_of_json_that_means_nothing_is_named(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    # The last of two equal keys is what counts.
    changed = f"{json.dumps(ROW)[:-1]}, {row[1:]}"
    path.write_text(f"{json.dumps(ROW)}\n{changed}\n")
    with pytest.raises(BadInput, match=rf"t\.jsonl: line 2: {said}"):
        read_trace(str(path))


def test_what_traces_really_contain_is_taken(tmp_path: Path) -> None:
    """A byte order mark, blank lines, whole numbers as floats, no tokens, the largest name."""
    path = tmp_path / "t.csv"
    path.write_text(f"{CSV}\n2023-11-16 18:17:04,0,0\n", encoding="utf-8-sig")
    assert [r[1:3] for r in read_trace(str(path))] == [(100, 5), (0, 0)]
    lines = tmp_path / "t.jsonl"
    largest = {**ROW, "input_length": 600.0, "hash_ids": [2**64]}
    lines.write_text(f"\n{json.dumps(ROW)}\n  \n{json.dumps(largest)}\n\n", encoding="utf-8-sig")
    trace = read_trace(str(lines))
    assert [r.prompt_tokens for r in trace] == [600, 600]
    assert len(play(fleet_of(NODE), trace, "tidegate")) == 2


def test_a_trace_is_played_in_order_of_time(tmp_path: Path) -> None:
    """Equal moments keep the file's order."""
    path = tmp_path / "t.jsonl"
    moments = [3000, 1000, 2000, 1000]
    path.write_text(
        "".join(json.dumps(ROW | {"timestamp": t, "output_length": n}) + "\n" for n, t in enumerate(moments))
    )
    trace = read_trace(str(path))
    assert [(r.at_s, r.output_tokens) for r in trace] == [(1.0, 1), (1.0, 3), (2.0, 2), (3.0, 0)]
    assert all(served.ttft_s > 0.0 for served in play(fleet_of(NODE), trace, "round-robin"))


@pytest.mark.parametrize("fraction", ["", ".5", ".0099300", ".009930"])
def test_a_moment_with_a_zone_is_the_same_however_exact_it_is(fraction: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00{fraction}+02:00,1,1\n"
        "2023-11-16 16:00:01,1,1\n"
    )
    first, second = read_trace(str(path), None)
    assert 0.0 < second.at_s - first.at_s <= 1.0


def test_moments_without_a_zone_are_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across the night in which a zone's clocks go back."""
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-10-29 02:30:00,1,1\n2023-10-29 03:30:00,1,1\n"
    )
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        first, last = read_trace(str(path))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert last.at_s - first.at_s == 3600.0


@pytest.mark.parametrize("rate", [1e-300, 1e-12])
def test_what_would_be_played_for_ever_is_refused(rate: float) -> None:
    fleet = parse_fleet({"version": 1, "node": [NODE]})
    with pytest.raises(BadInput, match="the requests come within"):
        draw([Recorded(0.0, 1, 1), Recorded(1.0, 1, 1)], fleet, seed=0, rate=rate)
    with pytest.raises(BadInput, match="more than 10000000 requests"):
        read_trace("synthetic:1e300:1")
