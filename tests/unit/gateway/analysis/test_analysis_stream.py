"""`tidegate complexity`: a line out for every line in, whatever is in it."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from typing import Any

from gateway.analysis import stream
from gateway.analysis.difficulty import DifficultyModel


def judged(*lines: bytes) -> list[dict[str, Any]]:
    out = io.StringIO()
    ticks = itertools.count()
    stream.judge_lines(DifficultyModel(), io.BytesIO(b"".join(lines)), out, lambda: next(ticks) * 0.25)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_bad_lines_are_answered_in_their_place() -> None:
    good = b'{"prompt": "Hi"}\n'
    lines = [
        b"\n",
        b"no json\n",
        b"[1]\n",
        b'{"prompt": 3}\n',
        b'{"text": "x"}\n',
        b"\xff\xfe\n",
        b"[" * 10**5 + b"\n",
    ]
    found = judged(good, *lines, b'{"prompt": "\\ud800"}\n', b'{"prompt": "no end of line"}')
    assert [("error" in each) for each in found] == [False, *[True] * len(lines), False, False]
    assert [each["line"] for each in found[1:-2]] == list(range(2, 2 + len(lines)))
    assert found[0].keys() == {"p_small_ok", "difficulty", "ms"}
    assert 0.0 < found[0]["p_small_ok"] < 1.0
    assert found[0]["ms"] == 250.0


def test_a_line_beyond_the_limit_costs_itself_only(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 100)
    found = judged(b'{"prompt": "' + b"x" * 350 + b'"}\n', b'{"prompt": "next"}\n')
    assert ["error" in each for each in found] == [True, False]


def test_lines_are_answered_as_they_come_and_a_bad_model_is_one_sentence() -> None:
    command = [sys.executable, "-m", "tidegate_cli", "complexity"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for prompt in ("Hi", "Prove it."):
            process.stdin.write(json.dumps({"prompt": prompt}).encode() + b"\n")
            process.stdin.flush()
            assert "p_small_ok" in json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == 0
    bad = b'{"prompt": "Hi"}\nno json\n[1]\n'
    partly = subprocess.run(command, input=bad, capture_output=True, timeout=20, check=False)
    assert ["error" in json.loads(line) for line in partly.stdout.splitlines()] == [False, True, True]
    assert partly.returncode == 1
    assert partly.stderr == b"tidegate complexity: lines that could not be used: 2\n"
    failed = subprocess.run([*command, "--model", "/nowhere"], capture_output=True, timeout=20, check=False)
    assert failed.returncode == 1
    assert failed.stderr.decode().count("\n") == 1
