"""Tables and JSON for the terminal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

GAP = "  "
# Where output is no terminal: wide enough for reasons, narrow enough for a log.
UNKNOWN_WIDTH = 160
# The last column is never narrower, however narrow the terminal.
LEAST_TEXT = 30


def terminal_width() -> int:
    return shutil.get_terminal_size((UNKNOWN_WIDTH, 0)).columns if sys.stdout.isatty() else UNKNOWN_WIDTH


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns as wide as their widest cell, numbers right-aligned.

    With `width` the last column is shortened so that a line fits, between words where there are any.
    """
    if width is not None and len(header) > 1:
        others = sum(max(len(row[i]) for row in (header, *rows)) + len(GAP) for i in range(len(header) - 1))
        room = max(LEAST_TEXT, width - others)
        rows = [(*row[:-1], shortened(row[-1], room)) for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    right = [_is_numeric([row[i] for row in rows]) for i in range(len(header))]
    lines = [header, ["-" * each for each in widths], *rows]
    return "\n".join(
        GAP.join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def shortened(text: str, room: int) -> str:
    """At most `room` characters; what is cut ends between two words, with an ellipsis."""
    if len(text) <= room:
        return text
    at_word = text[:room].rpartition(" ")[0].rstrip(" ,;:(")
    # Half a line of air would say less than half a word.
    return (at_word if len(at_word) > room // 2 else text[: room - 1]) + "…"


def _is_numeric(cells: Sequence[str]) -> bool:
    """Numbers with or without a unit; a dash stands for none."""
    told = [cell for cell in cells if cell not in ("", "-")]
    return bool(told) and all(_is_number(cell.split(" ")[0]) and cell.count(" ") <= 1 for cell in told)


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).lstrip("-").isdigit()


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def plain(value: Any) -> Any:
    """Dataclasses, enums and sets as what JSON knows."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def as_json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, indent=2)
