"""Certificates on disk: every version is kept, one is in force, and an older one can be again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tidegate_cli.stack import ChildFailed

IN_FORCE = "current.json"


class NoVersion(ChildFailed):
    """There is no such version; the message is one line."""


class Versions:
    """A folder with 0001.json, 0002.json and so on, and current.json, which gateways read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in self._folder.glob("[0-9]*.json") if p.stem.isdigit())

    def in_force(self) -> int | None:
        try:
            return int(json.loads((self._folder / IN_FORCE).read_text(encoding="utf-8"))["version"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self, number: int) -> dict[str, Any]:
        """Raises NoVersion."""
        try:
            found: dict[str, Any] = json.loads(self._file(number).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NoVersion(f"{self._folder} has no version {number}") from error
        return found

    def add(self, certificates: dict[str, Any]) -> int:
        """Writes the next version and puts it in force. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max(self.numbers(), default=0) + 1
        self._write(self._file(number), {"version": number, **certificates})
        self.put_in_force(number)
        return number

    def put_in_force(self, number: int) -> None:
        """Raises NoVersion, OSError."""
        self._write(self._folder / IN_FORCE, self.read(number))

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:04d}.json"

    @staticmethod
    def _write(path: Path, value: dict[str, Any]) -> None:
        """Whole or not at all: a gateway may read it at any time."""
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
