"""A long measurement in pieces: what was seen so far is kept in a file between them."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Cancels:
    """What the tries led to; the others are streams that nobody cancels."""

    tries: int = 0
    before_first: int = 0
    steps: list[int] = field(default_factory=list)
    freed_ms: list[float] = field(default_factory=list)
    tokens_after: int = 0
    others: int = 0
    others_wrong: int = 0
    # Streams with other tokens than undisturbed: (prompt, tokens, where they part), and how many there were.
    differing: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)
    parted: int = 0
    gaps: list[float] = field(default_factory=list)


class Pieces:
    """`file` None keeps nothing; a piece ends after `within_s`."""

    def __init__(self, file: Path | None = None, within_s: float = float("inf")) -> None:
        self._file = file
        self._ends_s = time.monotonic() + within_s

    @property
    def over(self) -> bool:
        return time.monotonic() > self._ends_s

    def seen(self) -> Cancels:
        if self._file is None or not self._file.exists():
            return Cancels()
        known = json.loads(self._file.read_text(encoding="utf-8"))
        return Cancels(**known)

    def keep(self, seen: Cancels) -> None:
        if self._file is not None:
            # Streams that took another turn have been judged in their own piece.
            self._file.write_text(json.dumps(dataclasses.asdict(seen) | {"differing": []}), encoding="utf-8")

    def done(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
