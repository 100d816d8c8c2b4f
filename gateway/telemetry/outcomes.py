"""The outcome log: what `tidegate calibrate` certifies from. JSON lines, never prompt text, bounded, rotated.

Two kinds of lines. One per answered request: who answered, how difficult the prompt was, whether it was
drawn by chance to be judged and with which propensity. One per verdict: which request, and whether its
answer was worse."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

VERSION = 1
Source = Literal["feedback", "pair", "escalation"]


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One answered request. `at_s` is seconds since 1970. `drawn` means that a verdict is wanted.

    A pair names in `paired_with` the variant whose answer the served one is compared with; empty: with what
    the judge expects of the best variant.
    """

    request: str
    tenant: str
    at_s: float
    difficulty: float
    variant: str
    model: str
    tier: str
    data_class: str
    propensity: float
    drawn: bool
    paired_with: str = ""


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """What became known of a request's answer."""

    request: str
    tenant: str
    at_s: float
    worse: bool
    source: Source


class _Quiet(RotatingFileHandler):
    """A full disk costs lines, not a traceback per request."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=files, encoding="utf-8", delay=True)
        self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.lost += 1


class OutcomeLog:
    """Appends to `path`; at most `files` + 1 files of `max_bytes` each, the oldest goes first."""

    def __init__(self, path: Path, *, max_bytes: int = 64 * 1024 * 1024, files: int = 4) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _Quiet(path, max_bytes, files)

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._handler.lost

    def write(self, row: OutcomeRow | VerdictRow) -> None:
        kind = "verdict" if isinstance(row, VerdictRow) else "answer"
        fields = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
        line = json.dumps({"v": VERSION, "kind": kind, **fields}, separators=(",", ":"))
        record = logging.LogRecord("outcomes", logging.INFO, "", 0, line, None, None)
        self._handler.handle(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._handler.close()
