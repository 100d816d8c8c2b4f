"""What the parent knows of the work it gave to the child. Pure, one event loop.

The child is the truth about slots; between two of its reports the parent counts what it has sent since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from serving.engines.llama_cpp.protocol import LoadState
from tidegate.routing.domain import AttemptKey, Failure, Finish, SequenceOutput, Work

_BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class Submitted:
    """A sequence that has not ended. `next_index` is where its next output begins.

    `slept`: it came while the model was unloaded; `wake_ms` is how long it waited for that.
    """

    sid: int
    work: Work
    text: str
    submitted_at: float
    next_index: int
    sent: bool = False
    slept: bool = False
    wake_ms: float = 0.0

    def stamped(self, output: SequenceOutput) -> SequenceOutput:
        """Of the wait, what the model took to load is no queue."""
        first = output.first_token
        if first is None or self.wake_ms <= 0.0:
            return output
        queue_ms = max(0.0, first.queue_ms - self.wake_ms)
        return replace(output, first_token=replace(first, queue_ms=queue_ms, wake_ms=self.wake_ms))


class Ledger:
    """Sequences by number and by key, and the load that follows from them."""

    def __init__(self) -> None:
        self._by_sid: dict[int, Submitted] = {}
        self._sid_of: dict[AttemptKey, int] = {}
        self._cancelling: set[int] = set()
        self._last_sid = 0
        self.reported = LoadState()

    def __len__(self) -> int:
        return len(self._by_sid)

    def __contains__(self, key: object) -> bool:
        return key in self._sid_of

    def __iter__(self) -> Iterator[Submitted]:
        return iter(list(self._by_sid.values()))

    @property
    def occupied(self) -> int:
        """Sequences that hold or may hold a slot or a place in the queue, cancelled ones until confirmed."""
        return len(self._by_sid) + len(self._cancelling)

    def add(self, work: Work, text: str, now: float) -> Submitted:
        self._last_sid += 1
        entry = Submitted(self._last_sid, work, text, now, work.start_index)
        self._by_sid[entry.sid] = entry
        self._sid_of[work.key] = entry.sid
        return entry

    def get(self, sid: int) -> Submitted | None:
        return self._by_sid.get(sid)

    def cancel(self, key: AttemptKey) -> Submitted | None:
        """Takes the sequence out; it is counted as occupying its slot until `freed`, if it was sent."""
        sid = self._sid_of.pop(key, None)
        if sid is None:
            return None
        entry = self._by_sid.pop(sid)
        if entry.sent:
            self._cancelling.add(sid)
        return entry

    def freed(self, sid: int) -> None:
        """The child confirms a cancel, or an end that crossed it."""
        self._cancelling.discard(sid)

    def ended(self, sid: int) -> None:
        entry = self._by_sid.pop(sid, None)
        if entry is not None:
            self._sid_of.pop(entry.work.key, None)

    def fail_all(self, failure: Failure) -> tuple[SequenceOutput, ...]:
        """The child is gone: the last output of every sequence."""
        outputs = tuple(
            SequenceOutput(entry.work.key, entry.next_index, finish=Finish(failure))
            for entry in self._by_sid.values()
        )
        self._by_sid.clear()
        self._sid_of.clear()
        self._cancelling.clear()
        self.reported = LoadState(seen=self._last_sid)
        return outputs

    def unseen_tokens(self) -> tuple[int, int, int]:
        """(sequences, estimated prompt tokens, answer tokens) that the child's last report does not cover."""
        unseen = [e for e in self._by_sid.values() if e.sid > self.reported.seen]
        prompts = sum(len(e.work.input) // _BYTES_PER_TOKEN + 1 for e in unseen)
        return len(unseen), prompts, sum(e.work.max_tokens for e in unseen)
