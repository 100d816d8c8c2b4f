"""Log lines are single JSON objects, and an exception's words stay out of them."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from serving.logs import JsonFormatter, TextFormatter


def record(message: str, error: BaseException | None = None, **facts: object) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("area.part", logging.WARNING, __file__, 1, message, (), info)
    made.created = 0.25
    vars(made).update(facts)
    return made


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception:  # noqa: BLE001 - the traceback is what the test needs
        caught = sys.exc_info()[1]
        assert isinstance(caught, Exception)
        return caught


def test_one_json_object_with_the_facts() -> None:
    line = JsonFormatter("edge").format(record("lost\nlink", gateway="a:1", tries=3))
    assert "\n" not in line
    assert json.loads(line) == {
        "ts": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "program": "edge",
        "logger": "area.part",
        "msg": "lost\nlink",
        "gateway": "a:1",
        "tries": 3,
    }


def test_an_exceptions_message_is_only_written_at_debug_level() -> None:
    error = raised(ValueError("the prompt was: my diary"))
    quiet = JsonFormatter("edge").format(record("failed", error))
    assert "diary" not in quiet
    assert json.loads(quiet)["exception"] == "ValueError"
    assert json.loads(quiet)["at"][-1].endswith(" raised")
    assert "diary" in JsonFormatter("edge", shows_messages=True).format(record("failed", error))


def test_an_operating_systems_error_is_told() -> None:
    line = JsonFormatter("edge").format(record("failed", raised(OSError(28, "No space left on device"))))
    assert "No space left" in json.loads(line)["exception_message"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter("edge")])
def test_no_line_breaks_or_escapes_reach_the_terminal(formatter: logging.Formatter) -> None:
    line = formatter.format(record("a\nb\x1b[2J", name_given="x\ny"))
    assert "\n" not in line
    assert "\x1b" not in line
