"""The outcome log: what `tidegate calibrate` certifies from. JSON lines, never prompt text, bounded, rotated.

Three kinds of lines. One per answered request: who answered, how difficult the prompt was, whether it was
drawn by chance to be judged and with which propensity. One per pair, where a copy was answered too: which two
variants. One per verdict: which request, of a pair which variant, and whether its answer was worse."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

VERSION = 1
Source = Literal["feedback", "pair"]


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One answered request. `at_s` is seconds since 1970. `drawn` means that a verdict is wanted.

    `complexity` is the fingerprint of the model that judged the difficulty, `best` the digest of the best
    variant then: what a verdict on this answer is about.
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
    complexity: str
    best: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two variants answered the same request: `variant` is to be judged beside `paired_with`.

    `propensity` is the chance with which the copy was drawn; that it also ran depends on how busy its nodes
    were, never on an answer. `against_best`: the other one was the best variant of the fleet then.
    """

    request: str
    tenant: str
    at_s: float
    difficulty: float
    variant: str
    model: str
    data_class: str
    propensity: float
    paired_with: str
    against_best: bool
    complexity: str
    best: str


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """What became known of a request's answer; of a pair of that of `variant`, beside the other one's."""

    request: str
    tenant: str
    at_s: float
    worse: bool
    source: Source
    variant: str = ""


Row = OutcomeRow | PairRow | VerdictRow
_KINDS: dict[type[Row], str] = {OutcomeRow: "answer", PairRow: "pair", VerdictRow: "verdict"}


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

    def write(self, row: Row) -> None:
        kind = _KINDS[type(row)]
        # A small share would be another one when rounded, or 0.
        fields = {
            k: round(v, 4) if isinstance(v, float) and k != "propensity" else v
            for k, v in asdict(row).items()
        }
        line = json.dumps({"v": VERSION, "kind": kind, **fields}, separators=(",", ":"))
        record = logging.LogRecord("outcomes", logging.INFO, "", 0, line, None, None)
        self._handler.handle(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._handler.close()
