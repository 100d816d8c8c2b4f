"""A gateway for tests: a real gRPC server on a free loopback port that plays scripts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.gateway.v1 import gateway_pb2_grpc as rpc
from tidegate.routing.domain import Code, Explanation, GenerateRequest, ServeError, Usage
from tidegate.routing.embedding import Embedded
from tidegate.testing.script import Fail, Hang, Pause, Step, Together, answer, default_route
from tidegate.wire import codec, fleet, status
from tidegate.wire.channels import server_options
from tidegate.wire.embedding import decode_embed_request, encode_embedded
from tidegate.wire.fleet import Decision, ModelInfo, NodeInfo

Context = Any


class FakeGateway(rpc.GatewayServiceServicer):
    """Serves GatewayService inside `async with`.

    Each Generate plays the oldest script given to `script()`, or answers with the words of the last message
    when there is none. What arrived is in `requests` and `metadata`, what ended early in `cancelled`, what
    Feedback said of which request (whether worse, and of which variant) in `verdicts`.
    `nodes`, `models` and `decision` are the answers to ListNodes, ListModels, Explain and Route; `set_nodes`
    also wakes the watchers. `fail_next` makes any next calls, of any kind, fail before their first message.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        nodes: Sequence[NodeInfo] = (),
        models: Sequence[ModelInfo] = (),
        decision: Decision | None = None,
        server_credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.requests: list[GenerateRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.cancelled: list[str] = []
        self.verdicts: list[codec.Judgement] = []
        self.calls = 0
        self.nodes = tuple(nodes)
        self.models = tuple(models)
        self.decision = decision or Decision(route=default_route(), explanation=Explanation())
        self._api_key = api_key
        self._credentials = server_credentials
        self._scripts: deque[tuple[Step, ...]] = deque()
        self._failures: deque[Fail] = deque()
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """ "127.0.0.1:port" while it serves."""
        return f"127.0.0.1:{self._port}"

    def script(self, *steps: Step) -> None:
        """Plays these steps for the next Generate that has no script yet."""
        self._scripts.append(steps)

    def fail_next(self, *failures: Fail) -> None:
        """One failure per call, before the first message."""
        self._failures.extend(failures)

    def set_nodes(self, nodes: Sequence[NodeInfo]) -> None:
        self.nodes = tuple(nodes)
        self._notify()

    async def wait_cancelled(self, count: int = 1) -> None:
        """Returns once `count` requests have been cancelled. Bound it with asyncio.timeout."""
        await self._until(lambda: len(self.cancelled) >= count)

    async def wait_requests(self, count: int = 1) -> None:
        """Returns once `count` Generate calls have arrived."""
        await self._until(lambda: len(self.requests) >= count)

    async def start(self, port: int = 0) -> None:
        """Listens on loopback; 0 takes a free port, or the one used before."""
        server = grpc.aio.server(options=server_options())
        rpc.add_GatewayServiceServicer_to_server(self, server)
        address = f"127.0.0.1:{port or self._port}"
        if self._credentials is None:
            self._port = server.add_insecure_port(address)
        else:
            self._port = server.add_secure_port(address, self._credentials)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Cuts all streams at once, as a killed gateway does."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        await self._enter(context)
        try:
            remaining_s = context.time_remaining()
            decoded = codec.decode_generate_request(
                request, remaining_ms=None if remaining_s is None else remaining_s * 1_000
            )
        except ServeError as error:
            await _abort(context, Fail(error))
        self.requests.append(decoded)
        self._notify()
        try:
            for step in self._scripts.popleft() if self._scripts else _echo(decoded):
                if isinstance(step, Fail):
                    await _abort(context, step)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Hang):
                    await asyncio.Event().wait()
                elif isinstance(step, Together):
                    first, *others = (codec.encode_event(event) for event in step.events)
                    first.following.extend(others)
                    yield first
                else:
                    yield codec.encode_event(step)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(decoded.request_id)
            self._notify()
            raise

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        await self._enter(context)
        try:
            codec.decode_generate_request(request.request)
        except ServeError as error:
            await _abort(context, Fail(error))
        return fleet.encode_decision(self.decision)

    async def Feedback(self, request: pb.FeedbackRequest, context: Context) -> pb.FeedbackResponse:
        await self._enter(context)
        try:
            self.verdicts.append(codec.decode_feedback(request))
        except ServeError as error:
            await _abort(context, Fail(error))
        return pb.FeedbackResponse()

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """As many numbers as characters, so that a test can tell texts apart."""
        await self._enter(context)
        try:
            asked = decode_embed_request(request)
        except ServeError as error:
            await _abort(context, Fail(error))
        self.requests.append(asked)
        self._notify()
        vectors = tuple((float(len(text)), float(index)) for index, text in enumerate(asked.embed))
        return encode_embedded(Embedded(vectors, Usage(sum(map(len, asked.embed)))))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        await self._enter(context)
        return pb.ListNodesResponse(nodes=[fleet.encode_node(node) for node in self.nodes])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        await self._enter(context)
        return pb.ListModelsResponse(models=[fleet.encode_model(model) for model in self.models])

    async def WatchFleet(
        self, request: pb.WatchFleetRequest, context: Context
    ) -> AsyncIterator[pb.WatchFleetResponse]:
        await self._enter(context)
        while True:
            seen = self.nodes
            yield pb.WatchFleetResponse(nodes=[fleet.encode_node(node) for node in seen])
            while self.nodes == seen:
                await self._changed.wait()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncIterator[pb.ResumeResponse]:
        await self._enter(context)
        await _abort(context, Fail(ServeError(Code.UNIMPLEMENTED, "Resume is reserved")))
        yield pb.ResumeResponse()

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        await self._enter(context)
        route, refusal = self.decision.route, self.decision.refusal
        try:
            codec.decode_generate_request(request.request)
            if route is None:
                raise ServeError(Code.RESOURCE_EXHAUSTED, refusal, reason="BUDGET_UNMEETABLE")
        except ServeError as error:
            await _abort(context, Fail(error))
        return pb.RouteResponse(route=codec.encode_route(route))

    async def _enter(self, context: Context) -> None:
        """Counts the call, fails it if told to, and checks its key."""
        self.calls += 1
        metadata = dict(context.invocation_metadata())
        self.metadata.append(metadata)
        if self._failures:
            await _abort(context, self._failures.popleft())
        if self._api_key is not None and metadata.get("authorization") != f"Bearer {self._api_key}":
            await _abort(context, Fail(ServeError(Code.UNAUTHENTICATED, "unknown API key")))

    def _notify(self) -> None:
        """Wakes all that wait for a change."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


@contextmanager
def serve_in_thread(gateway: FakeGateway) -> Iterator[FakeGateway]:
    """Serves from an event loop in a thread of its own, for blocking tests."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with gateway:
            ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fake-gateway") as pool:
        serving = pool.submit(asyncio.run, serve())
        either: tuple[Future[Any], ...] = (ready, serving)
        wait(either, return_when=FIRST_COMPLETED)
        if serving.done():
            serving.result()
        loop, stop = ready.result()
        try:
            yield gateway
        finally:
            loop.call_soon_threadsafe(stop.set)
            serving.result()


def _echo(request: GenerateRequest) -> tuple[Step, ...]:
    text = request.prompt if request.prompt is not None else request.messages[-1].content
    return answer(*text.split(" "))


async def _abort(context: Context, failure: Fail) -> NoReturn:
    if isinstance(failure.error, ServeError):
        await context.abort(
            status.to_grpc(failure.error.code),
            status.status_message(failure.error),
            status.trailing_metadata(failure.error),
        )
    else:
        await context.abort(failure.error, failure.message)
    raise AssertionError("abort always raises")
