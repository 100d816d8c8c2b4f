"""Measured rounds in a file, so that a long benchmark goes on where it was ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


class Kept:
    """One line of JSON a round: what it is of (say "prefix Q4_0"), and its figures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rounds: dict[str, list[Figures]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                found = json.loads(line)
                self._rounds.setdefault(found["of"], []).append(found["figures"])

    def rounds(self, of: str) -> list[Figures]:
        return self._rounds.get(of, [])

    def add(self, of: str, figures: Figures) -> None:
        self._rounds.setdefault(of, []).append(figures)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"of": of, "figures": figures}) + "\n")
