"""Certificates on disk: every version is kept, one is in force, and an older one can be again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.routing.certificates import Certified, parse
from tidegate_cli.stack import ChildFailed

IN_FORCE = "current.json"


class NoVersion(ChildFailed):
    """There is no such version, or its file is none; the message is one line."""


class Version(NamedTuple):
    """One list of certificates. `facts` is all that its file says, `certified` what gateways take of it."""

    number: int
    facts: dict[str, Any]
    certified: Certified


class Versions:
    """A folder with 0001.json, 0002.json and so on, and current.json, which gateways read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in self._folder.glob("[0-9]*.json") if p.stem.isdecimal())

    def in_force(self) -> Version | None:
        """None where there is none that can be read."""
        try:
            found = _load(self._folder / IN_FORCE)
        except (OSError, ValueError):
            return None
        number = found.facts.get("version")
        return found._replace(number=number) if type(number) is int else None

    def read(self, number: int) -> Version:
        """Raises NoVersion."""
        path = self._folder / f"{number:04d}.json"
        try:
            return _load(path)._replace(number=number)
        except OSError as error:
            raise NoVersion(f"{self._folder} has no version {number}") from error
        except ValueError as error:
            raise NoVersion(f"{path} is no list of certificates: {error}") from error

    def add(self, certificates: dict[str, Any]) -> int:
        """Writes the next version and puts it in force. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max(self.numbers(), default=0) + 1
        self._write(self._folder / f"{number:04d}.json", {"version": number, **certificates})
        self.put_in_force(number)
        return number

    def put_in_force(self, number: int) -> Version:
        """Raises NoVersion, OSError."""
        found = self.read(number)
        self._write(self._folder / IN_FORCE, {**found.facts, "version": number})
        return found

    @staticmethod
    def _write(path: Path, value: dict[str, Any]) -> None:
        """Whole or not at all: a gateway may read it at any time."""
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def _load(path: Path) -> Version:
    """Raises OSError, ValueError."""
    text = path.read_text(encoding="utf-8")
    certified = parse(text)
    return Version(0, json.loads(text), certified)
