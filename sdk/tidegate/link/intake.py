"""Work arriving in fragments, put together, with cancels that may overtake it.

Cancel travels on another connection than work, so it can come first: the last cancelled keys are remembered
and work that arrives after its own cancel is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from tidegate.routing.domain import AttemptKey, Work

MAX_INPUT_BYTES = 16 * 1024 * 1024
REMEMBERED_CANCELS = 4096


class IntakeError(ValueError):
    """The peer broke the fragment protocol."""


@dataclass(slots=True)
class _Partial:
    work: Work
    missing_bytes: int
    parts: list[bytes]


class Intake:
    """Puts one link's fragmented work together."""

    def __init__(self) -> None:
        self._partial: dict[AttemptKey, _Partial] = {}
        self._cancelled: OrderedDict[AttemptKey, None] = OrderedDict()

    def begin(self, work: Work, input_bytes: int) -> Work | None:
        """Takes a head; returns the work at once when it is complete. Raises IntakeError."""
        if not 0 <= input_bytes <= MAX_INPUT_BYTES or len(work.input) > input_bytes:
            raise IntakeError(f"input of {input_bytes} bytes, first fragment of {len(work.input)}")
        if work.key in self._cancelled:
            return None
        if len(work.input) == input_bytes:
            return work
        self._partial[work.key] = _Partial(work, input_bytes - len(work.input), [work.input])
        return None

    def add(self, key: AttemptKey, data: bytes) -> Work | None:
        """Takes a fragment; returns the work when this was the last one. Raises IntakeError."""
        partial = self._partial.get(key)
        if partial is None:
            return None
        partial.parts.append(data)
        partial.missing_bytes -= len(data)
        if partial.missing_bytes > 0:
            return None
        del self._partial[key]
        if partial.missing_bytes < 0:
            raise IntakeError(f"{-partial.missing_bytes} bytes more than announced")
        return replace(partial.work, input=b"".join(partial.parts))

    def cancel(self, key: AttemptKey) -> None:
        self._partial.pop(key, None)
        self._cancelled[key] = None
        if len(self._cancelled) > REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)
