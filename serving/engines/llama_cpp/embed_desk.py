"""Works of texts that the child embeds, as the parent knows them. Pure, one event loop."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from serving.engines.base import EngineRefused
from serving.engines.llama_cpp.protocol import Frame
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Usage,
    Work,
)
from tidegate.routing.embedding import unpack_texts


@dataclass(slots=True)
class _Open:
    sid: int
    work: Work
    submitted_at: float
    next_index: int = 0
    tokens: int = 0


class EmbedDesk:
    """At most `limit` works at once, computed one after the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_sid: dict[int, _Open] = {}
        self._sid_of: dict[AttemptKey, int] = {}
        self._last_sid = 0

    def __len__(self) -> int:
        return len(self._by_sid)

    def works(self) -> tuple[Work, ...]:
        return tuple(open_.work for open_ in self._by_sid.values())

    def add(self, work: Work, now: float) -> Frame:
        """The frame for the child. Raises EngineRefused."""
        if work.key in self._sid_of:
            raise EngineRefused(Failure(Cause.FENCED, "this attempt runs already"))
        if len(self._by_sid) >= self._limit:
            raise EngineRefused(Failure(Cause.OVERLOADED, f"{self._limit} lists of texts wait already"))
        try:
            texts = unpack_texts(work.input)
        except ValueError:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, "the input is no list of texts")) from None
        self._last_sid += 1
        self._by_sid[self._last_sid] = _Open(self._last_sid, work, now)
        self._sid_of[work.key] = self._last_sid
        return {"t": "embed", "sid": self._last_sid, "texts": texts}

    def cancel(self, key: AttemptKey) -> Frame | None:
        """The frame for the child; None for a work that is not here."""
        sid = self._sid_of.pop(key, None)
        if sid is None:
            return None
        del self._by_sid[sid]
        return {"t": "cancel_embed", "sid": sid}

    def take(self, frame: Frame, now: float) -> SequenceOutput | None:
        """What the child's frame gives; None when nobody waits for it any more. Raises like any bad frame."""
        open_ = self._by_sid.get(frame["sid"])
        if open_ is None:
            return None
        if "cause" in frame:
            self._close(open_)
            failure = Failure(Cause(frame["cause"]), frame["detail"])
            return _ended(open_, failure)
        if frame["first"] != open_.next_index:
            raise ValueError("vectors came out of order")
        count, first = int(frame["count"]), None
        open_.tokens = int(frame["tokens"])
        if open_.next_index == 0:
            passed_ms = (now - open_.submitted_at) * 1000.0
            first = FirstToken(0.0, passed_ms, 0, batch_size=count, prompt_tokens=open_.tokens)
        output = SequenceOutput(
            key=open_.work.key,
            first_index=open_.next_index,
            count=count,
            first_token=first,
            finish=Finish(FinishReason.STOP, Usage(open_.tokens)) if frame["done"] else None,
            vectors=base64.b64decode(frame["data"]),
        )
        open_.next_index += count
        if frame["done"]:
            self._close(open_)
        return output

    def fail_all(self, failure: Failure) -> tuple[SequenceOutput, ...]:
        outputs = tuple(_ended(open_, failure) for open_ in self._by_sid.values())
        self._by_sid.clear()
        self._sid_of.clear()
        return outputs

    def _close(self, open_: _Open) -> None:
        del self._by_sid[open_.sid]
        self._sid_of.pop(open_.work.key, None)


def _ended(open_: _Open, failure: Failure) -> SequenceOutput:
    return SequenceOutput(open_.work.key, open_.next_index, finish=Finish(failure, Usage(open_.tokens)))
