"""From token pieces to text: no character is split, and no part of a stop string ever leaks."""

from __future__ import annotations

import codecs


class TextAssembler:
    """Turns the bytes of one sequence's tokens into text that may be shown.

    Bytes that are no UTF-8 become U+FFFD. Text that could be the beginning of a stop string is held back
    until it is known not to be.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._inside = False

    def push(self, piece: bytes) -> tuple[str, bool]:
        """(text to show now, whether a stop string was completed). Nothing may be pushed after a stop."""
        if self._inside or not piece.isascii():
            text = self._decoder.decode(piece)
            self._inside = bool(self._decoder.getstate()[0])
        else:
            text = piece.decode("ascii")
        if not self._stop:
            return text, False
        self._held += text
        found = min((at for s in self._stop if (at := self._held.find(s)) >= 0), default=-1)
        if found >= 0:
            text, self._held = self._held[:found], ""
            return text, True
        keep = max(_overlap(self._held, s) for s in self._stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def flush(self) -> str:
        """What was held back, at an end without a stop string; an unfinished character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
