"""Reading tables that somebody wrote by hand: every problem names the table and the key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

# No count in a file is larger; far below what a float holds exactly.
MOST = 10**12


class BadInput(Exception):
    """A file that cannot be used; the message is one line."""


class Table:
    """One table of a file. `where` names it in messages. A key is read once; done() refuses the others.

    Every method raises BadInput.
    """

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise BadInput(f"{where}: must be a table")
        self.where = where
        self._data = data
        self._known: list[str] = []

    def has(self, key: str) -> bool:
        self._known.append(key)
        return key in self._data

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "must be a text")
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        above: float = -math.inf,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> float:
        """One that is `above` one limit, and from `least` to `most`."""
        return self.as_number(key, self._value(key, default), above=above, least=least, most=most)

    def optional(self, key: str, *, above: float = -math.inf) -> float | None:
        return self.number(key, above=above) if self.has(key) and self._data[key] is not None else None

    def whole(self, key: str, default: int | None = None, *, least: int = 0, most: int = MOST) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, f"must be a whole number of {least} or more")
        if value > most:
            raise self.wrong(key, f"must be at most {most}")
        return value

    def pair(
        self, key: str, default: tuple[float, float] | None = None, *, least: float = -math.inf
    ) -> tuple[float, float]:
        return self.as_pair(key, self._value(key, default), least=least)

    def items(self, key: str, default: tuple[Any, ...] | None = None) -> list[Any]:
        value = self._value(key, default)
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "must be a list")
        return list(value)

    def table(self, key: str) -> Table:
        """An empty one where the key is missing."""
        return Table(f"{self.where}: {key}", self._value(key, {}))

    def numbers(self, *, least: float = -math.inf, most: float = math.inf) -> dict[str, float]:
        """All of it: names that the file chose itself, each with a number."""
        return {str(key): self.number(key, least=least, most=most) for key in self._data}

    def as_number(
        self,
        key: str,
        value: Any,
        *,
        above: float = -math.inf,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "must be a number")
        try:
            number = float(value)
        except OverflowError:  # TOML's whole numbers have any length
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(key, "must be a finite number")
        if number <= above:
            raise self.wrong(key, f"must be above {above:g}")
        if not least <= number <= most:
            limits = f"from {least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            raise self.wrong(key, f"must be {limits}")
        return number

    def as_pair(self, key: str, value: Any, *, least: float = -math.inf) -> tuple[float, float]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise self.wrong(key, "must be two numbers in brackets")
        first, second = (self.as_number(key, part, least=least) for part in value)
        return first, second

    def wrong(self, key: str, problem: str) -> BadInput:
        return BadInput(f"{self.where}: {key} {problem}")

    def done(self) -> None:
        for key in self._data:
            if key not in self._known:
                close = difflib.get_close_matches(str(key), self._known, n=1)
                raise BadInput(
                    f"{self.where}: unknown key {key}" + (f', did you mean "{close[0]}"?' if close else "")
                )

    def _value(self, key: str, default: Any) -> Any:
        if self.has(key):
            return self._data[key]
        if default is None:
            raise self.wrong(key, "must be set")
        return default
