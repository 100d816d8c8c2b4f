"""Traces as files say them: what is wrong with one is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.tables import BadInput
from simulator.trace import read_trace


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
    ],
)
def test_what_is_wrong_with_a_trace_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=said):
        read_trace(name if text is None and ":" in name else str(tmp_path / name))
