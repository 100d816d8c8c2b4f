"""Ends a step that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class StepInterrupter:
    """Knows whom the running step computes for; cancelled() may be called from any thread.

    `interrupt` ends the step's computing, and that of every later one until `resume` is called.
    """

    def __init__(self, interrupt: Callable[[], None], resume: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._resume = resume
        self._lock = threading.Lock()
        self._in_step: frozenset[int] = frozenset()
        self._unwanted: set[int] = set()

    def begin_round(self) -> None:
        """All cancels made so far are about to be carried out; call it before they are read."""
        with self._lock:
            self._unwanted.clear()

    def cancelled(self, sid: int) -> None:
        """Call it once the cancel is where it will be read."""
        with self._lock:
            self._unwanted.add(sid)
            if self._in_step and self._in_step <= self._unwanted:
                self._interrupt()

    def step(self, sids: Iterable[int]) -> StepInterrupter:
        """`with` it around the computing of one step; no interrupt outlives it."""
        with self._lock:
            self._in_step = frozenset(sids)
            if self._in_step and self._in_step <= self._unwanted:
                self._interrupt()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._in_step = frozenset()
            self._resume()
