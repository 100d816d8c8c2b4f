"""One work of texts: its call upstream from sending to finish."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import aiohttp

from serving.engines.openai_http.failures import (
    UpstreamFailed,
    UpstreamGone,
    failure_of_exception,
    upstream_failed,
)
from serving.engines.openai_http.sequence import Sequence
from serving.engines.openai_http.settings import OpenAiHttpSettings
from serving.engines.openai_http.upstream import Upstream
from serving.engines.openai_http.wire import parse_usage
from tidegate.routing.domain import (
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Unit,
    Usage,
)
from tidegate.routing.embedding import MAX_VECTOR_BYTES, pack_vector

_MAX_ANSWER_BYTES = 64 << 20


class EmbedCall:
    """Runs one work upstream and emits its only output. Cancelling closes the upstream connection."""

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

    async def run(self, upstream: Upstream) -> bool:
        """True when the server itself seems gone or hung."""
        gone = False
        try:
            async with asyncio.timeout(self._limit_s()):
                vectors, usage = _parse(await self._ask(upstream), count=self._sequence.work.max_tokens)
            self._emit(self._answer(vectors, usage))
            return False
        except TimeoutError:
            failure, gone = self._timed_out()
        except UpstreamFailed as failed:
            failure, gone = failed.failure, isinstance(failed, UpstreamGone)
        except (aiohttp.ClientError, OSError) as broken:
            failure, gone = failure_of_exception(broken), True
        self._emit(self._sequence.ended(failure))
        return gone

    async def _ask(self, upstream: Upstream) -> bytes:
        request = self._sequence.request
        data = bytearray()
        async with upstream.stream(request.path, request.body) as stream:
            async for part in stream:
                data += part
                if len(data) > _MAX_ANSWER_BYTES:
                    raise upstream_failed("the upstream server's answer is larger than 64 MiB")
        return bytes(data)

    def _answer(self, vectors: list[bytes], said: Usage | None) -> SequenceOutput:
        sequence, now_s = self._sequence, self._clock()
        tokens = said.prompt_tokens if said and said.prompt_tokens else sequence.prompt_tokens
        started_s = sequence.started_s if sequence.started_s is not None else sequence.arrived_s
        return SequenceOutput(
            key=sequence.work.key,
            first_index=0,
            count=len(vectors),
            unit=Unit.DELTA,
            first_token=FirstToken(
                queue_ms=(started_s - sequence.arrived_s) * 1e3,
                prefill_ms=(now_s - started_s) * 1e3,
                cached_tokens=0,
                batch_size=sequence.peers,
                prompt_tokens=tokens,
            ),
            finish=Finish(FinishReason.STOP, Usage(tokens)),
            vectors=b"".join(vectors),
        )

    def _limit_s(self) -> float:
        deadline_s = self._sequence.deadline_s
        limit_s = self._settings.first_delta_timeout_s
        return limit_s if deadline_s is None else min(limit_s, max(0.0, deadline_s - self._clock()))

    def _timed_out(self) -> tuple[Failure, bool]:
        deadline_s = self._sequence.deadline_s
        if deadline_s is not None and self._clock() >= deadline_s - 1e-3:
            return Failure(Cause.DEADLINE, "the deadline passed while the upstream server worked"), False
        return Failure(Cause.ENGINE_HUNG, "the upstream server went silent: no vectors in time"), True


def _parse(body: bytes, *, count: int) -> tuple[list[bytes], Usage | None]:
    """The vectors in the order of the inputs, made as long as 1. Raises UpstreamFailed."""
    try:
        answer: Any = json.loads(body)
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        vectors = [_unit(row["embedding"]) for row in rows]
        usage = parse_usage(answer.get("usage"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise upstream_failed("the upstream server's answer holds no embeddings") from None
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
        raise upstream_failed(f"the upstream server gave {len(vectors)} embeddings for {count} inputs")
    if len(vectors[0]) > MAX_VECTOR_BYTES:
        raise upstream_failed("the upstream server's vectors are larger than any that are known")
    return vectors, usage


def _unit(values: list[float]) -> bytes:
    length = math.sqrt(math.fsum(value * value for value in values))
    if not values or not math.isfinite(length):
        raise ValueError("no vector")
    return pack_vector([value / length for value in values] if length > 0 else values)
