"""Work arriving in fragments, put together, with cancels that may overtake it.

Cancel travels on another connection than work, so it can come first: the last cancelled keys are remembered
and work that arrives after its own cancel is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from tidegate.routing.domain import AttemptKey, Cause, Failure, Work

MAX_INPUT_BYTES = 16 * 1024 * 1024
MAX_PARTIAL_BYTES = 64 * 1024 * 1024
# What a work costs beside its input, so that many small ones are bounded too.
HEAD_BYTES = 4096
REMEMBERED_CANCELS = 4096
MIN_TTFT_LEFT_MS = 1.0


class IntakeError(ValueError):
    """The peer broke the fragment protocol."""


class IntakeRefused(Exception):
    """One work that is not taken; nothing of it is kept and the rest of the link is as it was."""

    def __init__(self, key: AttemptKey, failure: Failure) -> None:
        super().__init__(f"{failure.cause.value}: {failure.detail}")
        self.key = key
        self.failure = failure


@dataclass(frozen=True, slots=True)
class _Partial:
    """A work whose input is still coming; `work.input` is empty until it is whole."""

    work: Work
    input_bytes: int
    begun_s: float
    data: bytearray

    @property
    def cost_bytes(self) -> int:
        return self.input_bytes + HEAD_BYTES


class Intake:
    """Puts one link's fragmented work together; `now_s` is any clock that only rises."""

    def __init__(self) -> None:
        self._partial: dict[AttemptKey, _Partial] = {}
        self._partial_bytes = 0
        self._cancelled: OrderedDict[AttemptKey, None] = OrderedDict()
        self._seen_seq = 0

    @property
    def acked_seq(self) -> int:
        """Every work up to this sequence number has arrived whole, or was cancelled or refused."""
        incomplete = (partial.work.work_seq for partial in self._partial.values())
        return min((seq - 1 for seq in incomplete), default=self._seen_seq)

    def __contains__(self, key: AttemptKey) -> bool:
        """Fragments of this work are still expected."""
        return key in self._partial

    def begin(self, work: Work, input_bytes: int, now_s: float) -> Work | None:
        """Takes a head; returns the work at once when it is complete.

        Raises IntakeRefused (INVALID_INPUT, OVERLOADED) and IntakeError.
        """
        if input_bytes < 0 or len(work.input) > input_bytes:
            raise IntakeError(f"input of {input_bytes} bytes, first fragment of {len(work.input)}")
        if work.key in self._partial:
            raise IntakeError("a work began again before it was whole")
        self._seen_seq = max(self._seen_seq, work.work_seq)
        if work.key in self._cancelled:
            return None
        if input_bytes > MAX_INPUT_BYTES:
            detail = f"an input of {input_bytes} bytes is above the limit of {MAX_INPUT_BYTES}"
            raise IntakeRefused(work.key, Failure(Cause.INVALID_INPUT, detail))
        if len(work.input) == input_bytes:
            return work
        partial = _Partial(replace(work, input=b""), input_bytes, now_s, bytearray(work.input))
        if self._partial_bytes + partial.cost_bytes > MAX_PARTIAL_BYTES:
            detail = f"{len(self._partial)} large inputs are on their way already"
            raise IntakeRefused(work.key, Failure(Cause.OVERLOADED, detail))
        self._partial[work.key] = partial
        self._partial_bytes += partial.cost_bytes
        return None

    def add(self, key: AttemptKey, data: bytes, now_s: float) -> Work | None:
        """Takes a fragment; returns the work when this was the last one, with the time its way took gone.

        Raises IntakeRefused (DEADLINE) and IntakeError.
        """
        partial = self._partial.get(key)
        if partial is None:
            return None
        partial.data.extend(data)
        surplus_bytes = len(partial.data) - partial.input_bytes
        elapsed_ms = (now_s - partial.begun_s) * 1000.0
        if surplus_bytes > 0:
            self._drop(key)
            raise IntakeError(f"{surplus_bytes} bytes more than announced")
        if partial.work.remaining_ms is not None and elapsed_ms >= partial.work.remaining_ms:
            self._drop(key)
            raise IntakeRefused(key, Failure(Cause.DEADLINE, "the input took longer than the deadline"))
        if surplus_bytes < 0:
            return None
        self._drop(key)
        return replace(_aged(partial.work, elapsed_ms), input=bytes(partial.data))

    def cancel(self, key: AttemptKey) -> None:
        self._drop(key)
        self._cancelled[key] = None
        if len(self._cancelled) > REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)

    def _drop(self, key: AttemptKey) -> None:
        partial = self._partial.pop(key, None)
        if partial is not None:
            self._partial_bytes -= partial.cost_bytes


def _aged(work: Work, elapsed_ms: float) -> Work:
    """A late first token is a missed budget, not an error: its time never runs out here."""
    remaining_ms, ttft_ms = work.remaining_ms, work.ttft_remaining_ms
    return replace(
        work,
        remaining_ms=None if remaining_ms is None else remaining_ms - elapsed_ms,
        ttft_remaining_ms=None if ttft_ms is None else max(MIN_TTFT_LEFT_MS, ttft_ms - elapsed_ms),
    )
