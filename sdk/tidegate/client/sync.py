"""The sync client: the same calls, semantics and errors as the async one, for blocking code."""

from __future__ import annotations

import random as random_module
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

from tidegate.client.answer import Answer, Completion, OnRestart
from tidegate.client.embedding import EmbedOptions, build_embed_request, read_embedded
from tidegate.client.request import GenerateOptions, Prompt, build_request
from tidegate.client.retry import DEFAULT_RETRY, Clock, RetryPolicy, Uniform
from tidegate.client.sync_calls import SyncCore, SyncServerStream, sync_unary
from tidegate.client.unary import (
    check_deadline,
    decode_explain,
    decode_models,
    decode_nodes,
    decode_route,
    feedback_message,
)
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Accepted, Chunk, Finished, GenerateEvent, Restarted, Route
from tidegate.routing.embedding import Embedded
from tidegate.wire.channels import MAX_RECEIVE_BYTES, TlsConfig
from tidegate.wire.fleet import Decision, ModelInfo, NodeInfo

SyncGenerateCall = SyncServerStream[pb.GenerateRequest, pb.GenerateResponse]
SyncWatchCall = SyncServerStream[pb.WatchFleetRequest, pb.WatchFleetResponse]


class SyncGenerateStream:
    """One answer as it comes: an iterator of Chunk. See GenerateStream.

    One thread iterates; `close()` may be called from any other, whose iteration then raises Cancelled.
    """

    def __init__(self, call: SyncGenerateCall, answer: Answer) -> None:
        self._call = call
        self._answer = answer
        self._events: deque[GenerateEvent] = deque()

    @property
    def request_id(self) -> str:
        return self._answer.request_id

    @property
    def accepted(self) -> Accepted | None:
        """Where the request went; None until the first event."""
        return self._answer.accepted

    @property
    def route(self) -> Route | None:
        """Where the answer comes from now; differs from `accepted.route` after a restart."""
        return self._answer.route

    @property
    def finished(self) -> Finished | None:
        """How it ended; None until it has."""
        return self._answer.finished

    @property
    def text(self) -> str:
        """All text received since the last restart."""
        return self._answer.text

    @property
    def restarts(self) -> tuple[Restarted, ...]:
        return self._answer.restarts

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from the start of iteration to the first token, by this client's clock."""
        return self._answer.ttft_ms

    def completion(self) -> Completion:
        """The whole answer, once the stream has ended. Raises TidegateError before."""
        return self._answer.completion()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        while (event := self._next()) is not None:
            try:
                chunk = self._answer.chunk_of(event)
            except BaseException:
                self.close()
                raise
            if chunk is not None:
                return chunk
        raise StopIteration

    def events(self) -> Iterator[GenerateEvent]:
        """Every event: Accepted, Chunk, Restarted, Finished. Never raises StreamRestarted."""
        while (event := self._next()) is not None:
            yield event

    def close(self) -> None:
        """Cancels the request if it still runs. Idempotent."""
        self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> GenerateEvent | None:
        self._answer.start()
        while not self._events:
            message = self._call.read()
            if message is None:
                self._answer.ended()
                return None
            try:
                self._events += self._answer.take(message)
            except BaseException:
                self.close()
                raise
        return self._events.popleft()


class SyncFleetWatch:
    """The nodes now and again whenever they change. See FleetWatch."""

    def __init__(self, call: SyncWatchCall) -> None:
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[NodeInfo, ...]:
        message = self._call.read()
        if message is None:
            raise StopIteration
        return decode_nodes(message)

    def close(self) -> None:
        self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncClient:
    """A client of one or several equal gateways, for blocking code. Arguments as for Client.

    May be shared by threads. Belongs to the process that used it first: gRPC does not survive a fork, so
    create it after forking (in a pre-fork server: in the worker) and use "spawn" with multiprocessing.
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = "localhost:50051",
        *,
        api_key: str | None = None,
        tls: TlsConfig | None = None,
        deadline_s: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        max_receive_bytes: int = MAX_RECEIVE_BYTES,
        random: Uniform = random_module.random,
        clock: Clock = time.monotonic,
    ) -> None:
        self._deadline_s = check_deadline(deadline_s)
        self._core = SyncCore(
            addresses,
            api_key=api_key,
            tls=tls,
            retry=retry,
            max_receive_bytes=max_receive_bytes,
            clock=clock,
            uniform=random,
        )
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[SyncGenerateCall | SyncWatchCall] = weakref.WeakSet()

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        deadline_s: float | None = None,
        on_restart: OnRestart = "raise",
        **options: Unpack[GenerateOptions],
    ) -> SyncGenerateStream:
        """Streams one answer. `prompt` is a user's text or a list of messages.

        Raises InvalidRequest at once for what the SDK can tell; everything else while iterating.
        """
        request, message = build_request(prompt, options)
        answer = Answer(request.request_id, on_restart, self._core.clock)
        call: SyncGenerateCall = SyncServerStream(
            self._core, lambda stub: stub.Generate, message, deadline_s=self._deadline(deadline_s)
        )
        self._own(call)
        return SyncGenerateStream(call, answer)

    def complete(
        self,
        prompt: Prompt | None = None,
        *,
        deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """The whole answer at once. A restart is no error here; `Completion.restarts` tells of it."""
        with self.generate(prompt, deadline_s=deadline_s, on_restart="reset", **options) as stream:
            for _ in stream:
                pass
            return stream.completion()

    def route(
        self,
        prompt: Prompt | None = None,
        *,
        deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Route:
        """Where this request would go now, without an answer, for any key; raises what generate would.

        Nothing is held: a moment later the same request may go elsewhere. `explain` gives all candidates.
        """
        _, message = build_request(prompt, options)
        response = sync_unary(
            self._core,
            lambda stub: stub.Route,
            pb.RouteRequest(request=message),
            self._deadline(deadline_s),
        )
        return decode_route(response)

    def explain(
        self,
        prompt: Prompt | None = None,
        *,
        deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Decision:
        """Where this request would go now, and why. Nothing is generated."""
        _, message = build_request(prompt, options)
        response = sync_unary(
            self._core,
            lambda stub: stub.Explain,
            pb.ExplainRequest(request=message),
            self._deadline(deadline_s),
        )
        return decode_explain(response)

    def feedback(
        self, request_id: str, *, worse: bool, variant: str = "", deadline_s: float | None = None
    ) -> None:
        """Tells how good an answer was: worse than the best variant's would have been, or not.

        Wanted where `Completion.feedback_wanted` says so. `variant` is a digest: the verdict is then on that
        variant's answer of a pair, beside the other one's. Raises TidegateError where no outcomes are kept,
        Overloaded for verdicts that come too fast.
        """
        sync_unary(
            self._core,
            lambda stub: stub.Feedback,
            feedback_message(request_id, worse=worse, variant=variant),
            self._deadline(deadline_s),
        )

    def embed(
        self,
        texts: Sequence[str],
        *,
        deadline_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embedded:
        """One vector of length 1 for each of 1 to 128 texts, in order."""
        message = build_embed_request(texts, options)
        response = sync_unary(self._core, lambda stub: stub.Embed, message, self._deadline(deadline_s))
        return read_embedded(response, len(texts))

    def nodes(self, *, deadline_s: float | None = None) -> tuple[NodeInfo, ...]:
        """The nodes the gateway knows."""
        response = sync_unary(
            self._core, lambda stub: stub.ListNodes, pb.ListNodesRequest(), self._deadline(deadline_s)
        )
        return decode_nodes(response)

    def models(self, *, deadline_s: float | None = None) -> tuple[ModelInfo, ...]:
        """The models that can be asked for now."""
        response = sync_unary(
            self._core, lambda stub: stub.ListModels, pb.ListModelsRequest(), self._deadline(deadline_s)
        )
        return decode_models(response)

    def watch_fleet(self, *, deadline_s: float | None = None) -> SyncFleetWatch:
        """The nodes now and again whenever they change, until closed. Only its own deadline ends it."""
        call: SyncWatchCall = SyncServerStream(
            self._core,
            lambda stub: stub.WatchFleet,
            pb.WatchFleetRequest(),
            deadline_s=check_deadline(deadline_s),
            reconnect=True,
        )
        self._own(call)
        return SyncFleetWatch(call)

    def close(self) -> None:
        """Cancels all streams and closes the connections. Idempotent."""
        with self._lock:
            streams = tuple(self._streams)
        for stream in streams:
            stream.close()
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own(self, call: SyncGenerateCall | SyncWatchCall) -> None:
        with self._lock:
            self._streams.add(call)

    def _deadline(self, deadline_s: float | None) -> float | None:
        return self._deadline_s if deadline_s is None else check_deadline(deadline_s)
