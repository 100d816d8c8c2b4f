"""Long measurements in pieces: what was measured is kept, so that one that was ended goes on where it was.

A piece is void once the code it came from has changed: the folder is named after that code.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.common import CannotMeasure

ROOT = Path(__file__).resolve().parents[1]
SIMULATED = (ROOT / "simulator", ROOT / "sdk" / "tidegate" / "routing")

Piece = dict[str, Any]


def fingerprint(folders: Iterable[Path], more: str = "") -> str:
    """Of all Python sources in these folders, and of `more`."""
    found = sha256(more.encode())
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


class Pieces:
    """`for_s` is how long new pieces are begun for; `more` is what they depend on beside the code."""

    def __init__(
        self, name: str, *, for_s: float, more: str = "", folders: Iterable[Path] = SIMULATED
    ) -> None:
        self._folder = (
            Path(tempfile.gettempdir()) / "tidegate-pieces" / f"{name}-{fingerprint(folders, more)}"
        )
        self._until_s = monotonic() + for_s

    def all_of(self, tasks: Mapping[str, Callable[[], Piece]]) -> dict[str, Piece]:
        """What each task gives, kept or made now. Raises CannotMeasure if some are left for later."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for name, make in tasks.items():
            path = self._folder / f"{name}.json"
            if not path.exists():
                if monotonic() >= self._until_s:
                    continue
                made = json.dumps(make())
                path.write_text(made, encoding="utf-8")
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        if len(found) < len(tasks):
            raise CannotMeasure(
                f"{len(tasks) - len(found)} of {len(tasks)} pieces are missing: start it again"
            )
        return found
