"""One sequence: its call upstream from sending to finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import aiohttp

from serving.engines.llama_cpp.text import TextAssembler
from serving.engines.openai_http.failures import (
    UpstreamFailed,
    UpstreamGone,
    failure_of_exception,
    upstream_failed,
)
from serving.engines.openai_http.settings import OpenAiHttpSettings
from serving.engines.openai_http.sse import SseError, SseParser
from serving.engines.openai_http.tools import CallWriter
from serving.engines.openai_http.upstream import Upstream
from serving.engines.openai_http.wire import Delta, UpstreamRequest, parse_event
from tidegate.routing.domain import (
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Unit,
    Usage,
    Work,
)

_SETTLE_S = 1.0  # how long after the finish reason usage and [DONE] may take
_BYTES_PER_TOKEN = 4
_DELTA_SLACK = 16  # a server may split a token's bytes or send held text late


def estimated_tokens(data: bytes) -> int:
    return max(1, len(data) // _BYTES_PER_TOKEN)


@dataclass(slots=True)
class Sequence:
    """What is known of one sequence. Times are seconds on the engine's clock, None until they happened."""

    work: Work
    request: UpstreamRequest
    arrived_s: float
    prompt_tokens: int
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    next_index: int = 0
    deltas: int = 0
    peers: int = 1
    upstream_waiting: int = 0
    guessed_tokens: int = 0
    usage: Usage | None = None
    task: asyncio.Task[None] | None = None

    @property
    def deadline_s(self) -> float | None:
        remaining_ms = self.work.remaining_ms
        return None if remaining_ms is None else self.arrived_s + remaining_ms / 1e3

    @property
    def pending_prefill_tokens(self) -> int:
        return max(self.prompt_tokens - self.guessed_tokens, 1) if self.first_s is None else 0

    @property
    def pending_decode_tokens(self) -> int:
        return max(0, self.work.max_tokens - self.deltas)

    def final_usage(self) -> Usage:
        """The server's word if it gave one, else estimates: the prompt's bytes, the deltas seen."""
        said = self.usage or Usage()
        return Usage(
            prompt_tokens=said.prompt_tokens or self.prompt_tokens,
            completion_tokens=said.completion_tokens or self.deltas,
            cached_tokens=said.cached_tokens,
        )

    def ended(self, result: FinishReason | Failure) -> SequenceOutput:
        """The last output of this sequence."""
        return SequenceOutput(
            key=self.work.key,
            first_index=self.next_index,
            unit=Unit.DELTA,
            finish=Finish(result, self.final_usage()),
        )


class SequenceCall:
    """Runs one sequence upstream and emits its outputs; exactly one of them carries `finish`."""

    def __init__(
        self,
        sequence: Sequence,
        settings: OpenAiHttpSettings,
        clock: Callable[[], float],
        emit: Callable[[SequenceOutput], None],
    ) -> None:
        self._sequence = sequence
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._parser = SseParser()
        self._text = TextAssembler(sequence.work.stop if settings.is_llama_server else ())
        self._calls = CallWriter()
        self._cut = False
        self._result: FinishReason | Failure | None = None
        self._done = False
        self._gone = False

    async def run(self, upstream: Upstream) -> bool:
        """True when the server itself seems gone or hung. Cancelling closes the upstream connection."""
        sequence = self._sequence
        try:
            async with asyncio.timeout(None) as watchdog:
                self._arm(watchdog, self._settings.first_delta_timeout_s)
                async with upstream.stream(sequence.request.path, sequence.request.body) as stream:
                    await self._follow(stream, watchdog)
                    result = self._result or Failure(
                        Cause.UPSTREAM, "the upstream server ended the stream without a finish reason"
                    )
                    self._emit(replace(sequence.ended(result), text=self._held_text(result)))
                    self._done = True
                    if not isinstance(result, Failure) and not self._cut:
                        await self._read_rest(stream, watchdog)
                    return False
        except TimeoutError:
            error: Failure = self._timed_out()
        except UpstreamFailed as failed:
            error = failed.failure
            self._gone = isinstance(failed, UpstreamGone)
        except SseError as broken:
            error = Failure(Cause.UPSTREAM, str(broken))
        except (aiohttp.ClientError, OSError) as broken_off:
            error = failure_of_exception(broken_off)
            self._gone = True
        if not self._done:
            self._emit(sequence.ended(self._result or error))
        return self._gone and self._result is None

    async def _follow(self, stream: AsyncIterator[bytes], watchdog: asyncio.Timeout) -> None:
        """Reads until [DONE] or the end of the stream."""
        async for data in stream:
            deltas = [parse_event(event) for event in self._parser.feed(data)]
            if not deltas:
                continue
            self._absorb(deltas)
            if self._cut or isinstance(self._result, Failure) or any(delta.done for delta in deltas):
                return
            self._arm(watchdog, _SETTLE_S if self._result else self._silence_allowed_s())

    def _held_text(self, result: FinishReason | Failure) -> str:
        """What might have become a stop string and did not, and the end of a call that is whole."""
        if self._cut or isinstance(result, Failure):
            return ""
        return self._text.flush() + (self._calls.close() if result is FinishReason.STOP else "")

    async def _read_rest(self, stream: AsyncIterator[bytes], watchdog: asyncio.Timeout) -> None:
        """The few bytes after [DONE], so that the connection can be used again."""
        watchdog.reschedule(asyncio.get_running_loop().time() + _SETTLE_S)
        async for _ in stream:
            pass

    def _absorb(self, deltas: list[Delta]) -> None:
        """All that one read gave becomes one output."""
        sequence = self._sequence
        for delta in deltas:
            sequence.usage = delta.usage or sequence.usage
            self._result = self._result or delta.finish
        count = sum(delta.count for delta in deltas)
        if not count:
            return
        given = "".join(self._calls.write(delta.text, delta.calls) for delta in deltas)
        text, self._cut = self._text.push(given.encode("utf-8", "replace"))
        if self._cut:
            self._result = FinishReason.STOP
        now_s = self._clock()
        first = self._first_token(now_s) if sequence.first_s is None else None
        sequence.last_s = now_s
        self._emit(
            SequenceOutput(
                key=sequence.work.key,
                first_index=sequence.next_index,
                count=count,
                text=text,
                unit=Unit.DELTA,
                first_token=first,
            )
        )
        sequence.next_index += count
        sequence.deltas += count
        if sequence.work.max_tokens > 0 and sequence.deltas > sequence.work.max_tokens + _DELTA_SLACK:
            raise upstream_failed("the upstream server sends more than the tokens asked for")

    def _first_token(self, now_s: float) -> FirstToken:
        sequence = self._sequence
        sequence.first_s = now_s
        started_s = sequence.arrived_s if sequence.started_s is None else sequence.started_s
        usage = sequence.usage or Usage(cached_tokens=sequence.guessed_tokens)
        return FirstToken(
            queue_ms=(started_s - sequence.arrived_s) * 1e3,
            prefill_ms=(now_s - started_s) * 1e3,
            cached_tokens=usage.cached_tokens,
            batch_size=sequence.peers,
            prompt_tokens=usage.prompt_tokens or sequence.prompt_tokens,
        )

    def _silence_allowed_s(self) -> float:
        if self._sequence.first_s is None:
            return self._settings.first_delta_timeout_s
        return self._settings.idle_timeout_s

    def _arm(self, watchdog: asyncio.Timeout, seconds: float) -> None:
        """Lets the watchdog bite after `seconds`, or at the sequence's deadline if that is sooner."""
        deadline_s = self._sequence.deadline_s
        if deadline_s is not None:
            seconds = min(seconds, max(0.0, deadline_s - self._clock()))
        watchdog.reschedule(asyncio.get_running_loop().time() + seconds)

    def _timed_out(self) -> Failure:
        sequence = self._sequence
        if sequence.deadline_s is not None and self._clock() >= sequence.deadline_s - 1e-3:
            return Failure(Cause.DEADLINE, "the deadline passed while the upstream server worked")
        self._gone = True
        what = "first output" if sequence.first_s is None else "next output"
        return Failure(Cause.ENGINE_HUNG, f"the upstream server went silent: no {what} in time")
