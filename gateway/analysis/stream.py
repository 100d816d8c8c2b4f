"""JSON lines through the complexity model: one object in, one object out, in order.

    {"prompt": "..."}  ->  {"p_small_ok": 0.71, "difficulty": 0.42, "ms": 0.21}

A line that cannot be used is answered in its place by {"error": "...", "line": N}; nothing ends the stream
but its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any

from gateway.analysis.difficulty import DifficultyModel

MAX_LINE_BYTES = 16 * 1024 * 1024


def judge_lines(model: DifficultyModel, source: IO[bytes], out: IO[str], clock: Callable[[], float]) -> int:
    """Reads until the end of `source` and returns how many lines failed; `clock` returns seconds."""
    number = failed = 0
    while line := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        result = _too_long(line, source) or _judged(model, line, clock)
        if "error" in result:
            result["line"] = number
            failed += 1
        out.write(json.dumps(result) + "\n")
        out.flush()
    return failed


def _too_long(line: bytes, source: IO[bytes]) -> dict[str, Any] | None:
    if len(line) <= MAX_LINE_BYTES:
        return None
    while line and not line.endswith(b"\n"):
        line = source.readline(MAX_LINE_BYTES)
    return {"error": f"the line is longer than {MAX_LINE_BYTES} bytes"}


def _judged(model: DifficultyModel, line: bytes, clock: Callable[[], float]) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "not a JSON object"}
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        return {"error": 'not an object with a text "prompt"'}
    began_s = clock()
    judged = model.judge(prompt, total_chars=len(prompt), turns=1)
    ms = (clock() - began_s) * 1000
    return {"p_small_ok": judged.p_small_ok, "difficulty": judged.difficulty, "ms": round(ms, 4)}
