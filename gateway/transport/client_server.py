"""GatewayService: what applications call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from gateway.dispatch import Dispatcher
from gateway.dispatch.caller import Client
from gateway.state import Fleet
from gateway.transport.clients import ClientDirectory
from gateway.transport.fleet_view import models_of
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.gateway.v1 import gateway_pb2_grpc
from tidegate.routing import explain
from tidegate.routing.domain import (
    Accepted,
    Code,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Restarted,
    ServeError,
)
from tidegate.routing.embedding import Collector
from tidegate.routing.naming import ModelNames
from tidegate.routing.plan import Refusal
from tidegate.wire import codec, fleet, summary
from tidegate.wire.embedding import decode_embed_request, encode_embedded
from tidegate.wire.fleet import Decision, NodeInfo, node_info

log = logging.getLogger(__name__)

# A client that takes nothing for this long is cut; the kernel and gRPC swallow megabytes before that shows.
WRITE_STALL_S = 30.0
WATCH_INTERVAL_S = 1.0
# Long enough for the work to be on its way to a node.
HEADERS_AFTER_S = 0.001


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """One per gateway process."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        state: Fleet,
        clients: ClientDirectory,
        *,
        names: ModelNames | None = None,
        write_stall_s: float = WRITE_STALL_S,
        watch_interval_s: float = WATCH_INTERVAL_S,
    ) -> None:
        self._dispatcher = dispatcher
        self._fleet = state
        self._clients = clients
        self._names = names
        self._write_stall_s = write_stall_s
        self._watch_interval_s = watch_interval_s

    async def Generate(  # type: ignore[override]  # writes by itself: backpressure per write
        self, request: pb.GenerateRequest, context: Any
    ) -> None:
        # Explanations name nodes and prices, as ListNodes does.
        client = self._need_admin(context) if request.explain else self._authenticate(context)
        asked = _decode(request, client, context)
        joins = request.takes_following and not request.early_accept
        teller = _Teller(context) if request.tell_in_metadata else None
        opening: pb.GenerateResponse | None = None
        async with (
            _headers(context, ahead=joins and teller is None) as headers_sent,
            aclosing(self._dispatcher.generate(asked, client)) as events,
        ):
            async for event in events:
                if teller is not None:
                    await teller.tell(event)
                message = codec.encode_event(event)
                if joins and isinstance(event, Accepted | Restarted):
                    opening = message  # what it opens is there already
                    continue
                if opening is not None:
                    opening.following.append(message)
                    message, opening = opening, None
                await headers_sent()
                await self._write(context, message)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        client = self._authenticate(context)
        asked = decode_embed_request(request, tenant=client.tenant, remaining_ms=_remaining_ms(context))
        collector = Collector()
        async with aclosing(self._dispatcher.generate(asked, client)) as events:
            async for event in events:
                if (embedded := collector.take(event)) is not None:
                    return encode_embedded(embedded)
        raise AssertionError("a generation ends with Finished or an error")

    async def _write(self, context: Any, message: Any) -> None:
        try:
            async with asyncio.timeout(self._write_stall_s):
                await context.write(message)
        except TimeoutError:
            raise ServeError(
                Code.CANCELLED, f"nothing was read for {self._write_stall_s:.0f} s", reason="READER_STALLED"
            ) from None

    async def Resume(  # type: ignore[override]
        self, request: pb.ResumeRequest, context: Any
    ) -> None:
        self._authenticate(context)
        raise ServeError(Code.UNIMPLEMENTED, "Resume is reserved and not served by this version")

    async def Route(self, request: pb.RouteRequest, context: Any) -> pb.RouteResponse:
        client = self._authenticate(context)
        route, decision_ms = self._dispatcher.route(_decode(request.request, client, context), client)
        return pb.RouteResponse(route=codec.encode_route(route), decision_ms=decision_ms)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        client = self._authenticate(context)
        models = models_of(self._fleet.snapshot(), client.tenant, self._names)
        return pb.ListModelsResponse(models=[fleet.encode_model(m) for m in models])

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        self._need_admin(context)
        return pb.ListNodesResponse(nodes=[fleet.encode_node(n) for n in self._nodes()])

    async def WatchFleet(  # type: ignore[override]
        self, request: pb.WatchFleetRequest, context: Any
    ) -> None:
        self._need_admin(context)
        seen = -1
        while True:
            if self._fleet.version != seen:
                seen = self._fleet.version
                nodes = [fleet.encode_node(n) for n in self._nodes()]
                await self._write(context, pb.WatchFleetResponse(nodes=nodes))
            await asyncio.sleep(self._watch_interval_s)

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        client = self._need_admin(context)
        decision = self._dispatcher.explain(_decode(request.request, client, context), client)
        result = decision.result
        if isinstance(result, Refusal):
            reasons = explain.refusal_explanation(result, decision.decision_ms)
            return fleet.encode_decision(Decision(None, reasons, explain.refusal_message(result)))
        reasons = explain.explanation(result, decision.decision_ms)
        return fleet.encode_decision(Decision(explain.route(result, judged=True), reasons))

    async def Feedback(self, request: pb.FeedbackRequest, context: Any) -> pb.FeedbackResponse:
        client = self._authenticate(context)
        judged = codec.decode_feedback(request)
        self._dispatcher.feedback(judged.request_id, client, worse=judged.worse, variant=judged.variant)
        return pb.FeedbackResponse()

    def _nodes(self) -> list[NodeInfo]:
        return [
            node_info(state, silent_ms=self._fleet.silent_ms(state.node_id))
            for state in self._fleet.snapshot().nodes
        ]

    def _authenticate(self, context: Any) -> Client:
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get("authorization")
        return self._clients.client(
            self._clients.authenticate(authorization if isinstance(authorization, str) else None)
        )

    def _need_admin(self, context: Any) -> Client:
        """The fleet and reasons are the operator's; a caller on loopback counts as one."""
        client = self._authenticate(context)
        if not client.is_admin and not _is_loopback(context.peer()):
            raise ServeError(Code.PERMISSION_DENIED, "this needs a key with the admin scope")
        return client


@asynccontextmanager
async def _headers(context: Any, *, ahead: bool) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """With `ahead` the response headers go out while the node computes, instead of with the first message.

    A gRPC client reads messages only after the headers: sent together, the first message waits until that
    reading has begun. Not for clients we do not know: a proxy cannot retry once it has seen headers. Gives
    what has to be awaited before anything is written.
    """
    if not ahead:
        yield _nothing
        return
    task = asyncio.create_task(_send_headers(context), name="early-headers")

    async def sent() -> None:
        if not task.done():
            await task

    try:
        yield sent
    finally:
        task.cancel()


async def _nothing() -> None:
    pass


async def _send_headers(context: Any) -> None:
    await asyncio.sleep(HEADERS_AFTER_S)
    try:
        await context.send_initial_metadata(())
    except Exception as error:  # noqa: BLE001 - the RPC has ended; whatever is written next says so
        log.debug("headers could not be sent", extra={"error": type(error).__name__})


class _Teller:
    """The route goes into the headers, what became of it into the trailers, with the route if it changed."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._changed: dict[str, str] = {}

    async def tell(self, event: GenerateEvent) -> None:
        if isinstance(event, Accepted):
            await self._context.send_initial_metadata(tuple(summary.of_route(event.route).items()))
        elif isinstance(event, Restarted):
            self._changed = summary.of_route(event.route)
        elif isinstance(event, Finished):
            told = self._changed | summary.of_outcome(event)
            self._context.set_trailing_metadata(tuple(told.items()))


def _is_loopback(peer: str) -> bool:
    return peer.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:"))


def _decode(request: pb.GenerateRequest, client: Client, context: Any) -> GenerateRequest:
    return codec.decode_generate_request(request, tenant=client.tenant, remaining_ms=_remaining_ms(context))


def _remaining_ms(context: Any) -> float | None:
    remaining_s = context.time_remaining()
    return None if remaining_s is None else max(0.0, remaining_s * 1000)
