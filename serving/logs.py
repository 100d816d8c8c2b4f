"""Logs of a program: one JSON object a line on stderr.

Pass facts as `extra={...}`, not inside the message. Prompt text, completions and secrets are never passed.
An exception's own message may quote what a user sent, so above debug level only its type and place are
written, unless it is an operating system's error.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FRAMES_SHOWN = 6


def setup_logging(program: str, level: str = "info", json_lines: bool = True) -> None:
    """Sends all records of `level` and above to stderr; replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    shows_messages = level == "debug"
    handler.setFormatter(
        JsonFormatter(program, shows_messages) if json_lines else TextFormatter(shows_messages)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """`ts` is UTC with milliseconds; the record's extras are members of their own."""

    def __init__(self, program: str, shows_messages: bool = False) -> None:
        super().__init__()
        self._program = program
        self._shows_messages = shows_messages

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": _utc(record.created),
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "msg": record.getMessage(),
            **extras(record),
            **_exception(record, self._shows_messages),
        }
        return json.dumps(entry, ensure_ascii=False, default=str, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """The same facts for a person at a terminal."""

    def __init__(self, shows_messages: bool = False) -> None:
        super().__init__()
        self._shows_messages = shows_messages

    def format(self, record: logging.LogRecord) -> str:
        facts = {**extras(record), **_exception(record, self._shows_messages)}
        told = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in facts.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock} {record.levelname.lower()} {json.dumps(record.getMessage())[1:-1]}{told}"


def extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def _exception(record: logging.LogRecord, shows_message: bool) -> dict[str, Any]:
    if not record.exc_info or record.exc_info[1] is None:
        return {}
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_SHOWN:]
    told: dict[str, Any] = {
        "exception": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if shows_message or isinstance(error, OSError):
        told["exception_message"] = str(error)
    return told
