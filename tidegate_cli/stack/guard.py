"""Ends the children of a local stack whose owner is gone, were it by SIGKILL.

Run as a script, with the standard library only, so that it costs next to nothing. The owner writes a line
with the PID of every child it starts, and "done" when it has ended them all itself; the end of the input
without that word means that the owner is no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 3.0


def sessions_left(lines: Iterable[str]) -> set[int]:
    """Sessions that nobody has ended: "PID" begins one, "-PID" ends it, "done" ends all."""
    left: set[int] = set()
    for line in lines:
        word = line.strip()
        if word == "done":
            return set()
        if word.startswith("-"):
            left.discard(int(word[1:]))
        elif word:
            left.add(int(word))
    return left


def end(sessions: set[int], grace_s: float) -> None:
    """SIGTERM to each, and SIGKILL to whatever is there after grace_s."""
    _signal(sessions, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while time.monotonic() < deadline_s and _signal(sessions, 0):
        time.sleep(0.05)
    _signal(sessions, signal.SIGKILL)


def _signal(sessions: set[int], number: int) -> bool:
    """Whether any of them was there. A child leads its session and its process group."""
    found = False
    for session in sessions:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, number)
            found = True
    return found


def main() -> int:
    # Meant for the owner, who tells us about its end in its own way.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end(sessions_left(sys.stdin), GRACE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
