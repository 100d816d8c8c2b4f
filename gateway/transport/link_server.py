"""NodeLinkService: what nodes dial."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from gateway.state import Fleet, OperatorTable, UnknownNode
from gateway.telemetry import Metrics
from gateway.transport.link_messages import encode_control, encode_data
from gateway.upstream import LinkRegistry, NodeSession
from gateway.upstream.commands import CacheResyncCommand, PingCommand
from serving.identity import is_proven
from tidegate.link import codec
from tidegate.node.v1 import node_pb2, node_pb2_grpc
from tidegate.routing.domain import Cause, ServeError

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
OLDEST_PROTOCOL = 1_000
NONCE_BYTES = 32
MAX_REPORTS_PER_S = 40
ENDED = "the node ended its link"
MAX_PINGS = 8
# A wake-up this much late means that this process stood still (a paused machine, a starved CPU).
OVERSLEPT_S = 0.25
# A new link's round trip is learned with its first heartbeats; later a ping and a pong per heartbeat would
# be two thirds of what a thousand nodes cost.
QUICK_PINGS = 4
PING_GAP_S = 5.0


@dataclass(slots=True)
class _Link:
    session: NodeSession
    has_data: asyncio.Event = field(default_factory=asyncio.Event)
    pings: dict[int, float] = field(default_factory=dict)
    next_nonce: int = 0
    pinged_s: float = 0.0
    resync_asked: bool = False
    reports: int = 0
    reports_since_s: float = 0.0


class NodeLinkServicer(node_pb2_grpc.NodeLinkServiceServicer):
    """`clock` returns seconds. A link lives as long as both of its streams."""

    def __init__(
        self,
        fleet: Fleet,
        registry: LinkRegistry,
        operator: OperatorTable,
        metrics: Metrics,
        *,
        replica_id: str,
        clock: Callable[[], float],
        heartbeat_s: float = 2.0,
        on_new_boot: Callable[[str], None] = lambda node_id: None,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._operator = operator
        self._metrics = metrics
        self._replica_id = replica_id
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._on_new_boot = on_new_boot
        self._by_token: dict[str, _Link] = {}
        self.draining = False

    # --- control ------------------------------------------------------------------------------------

    async def Control(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        link = await self._register(context)
        token = secrets.token_urlsafe(16)
        self._by_token[token] = link
        session = link.session
        reason = ENDED
        try:
            registered = node_pb2.Registered(
                replica_id=self._replica_id,
                link_token=token,
                heartbeat_interval_ms=self._heartbeat_s * 1000,
                protocol_version=codec.PROTOCOL_VERSION,
            )
            await context.write(node_pb2.ControlResponse(registered=registered))
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await link.has_data.wait()
            reason = await _first_of(
                self._read_control(context, link), _write_control(context, session), _closed(session)
            )
        except TimeoutError:
            reason = "the data stream did not come"
        finally:
            del self._by_token[token]
            self._end(session, reason)
        _say_why(context, reason)

    async def _register(self, context: Any) -> _Link:
        """Reads Register and takes the node in; ends the RPC when it may not join."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        await context.write(node_pb2.ControlResponse(challenge=node_pb2.Challenge(nonce=nonce)))
        register = (await _first_message(context, "register")).register
        if register.protocol_version < OLDEST_PROTOCOL:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"protocol {register.protocol_version} is too old, at least {OLDEST_PROTOCOL} is spoken here",
            )
        if not register.node_id or not register.variants:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "node_id and a variant are needed")
        if self.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this gateway is shutting down")
        try:
            announcement = codec.register_from_pb(register)
            said = codec.proof_message(nonce, announcement, register.link_epoch)
            proven = is_proven(register.node_id, register.public_key, register.signature, said)
            binding = self._operator.binding_for(register.node_id, register.join_token, is_proven=proven)
        except UnknownNode as error:
            self._metrics.link_events.labels("refused").inc()
            log.warning("node refused", extra={"node_id": register.node_id, "reason": str(error)})
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except ServeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        node_id = register.node_id
        session = NodeSession(
            node_id,
            register.link_epoch,
            is_proven=proven,
            on_open=lambda work: self._fleet.sent(node_id, work),
            on_first_token=lambda key: self._fleet.prefilled(node_id, key),
            on_end=lambda key: self._fleet.ended(node_id, key),
        )
        if not self._registry.add(session):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "a newer link of this node is here")
        if self._fleet.register(announcement, binding, register.link_epoch):
            self._on_new_boot(node_id)
        self._metrics.link_events.labels("registered").inc()
        log.info(
            "node linked",
            extra={"node_id": node_id, "name_": announcement.name, "tier": binding.tier.value},
        )
        return _Link(session)

    async def _read_control(self, context: Any, link: _Link) -> str:
        node_id = link.session.node_id
        self._ping(link)
        while (message := await context.read()) is not grpc.aio.EOF:
            self._heard(node_id)
            kind = message.WhichOneof("message")
            if kind == "heartbeat":
                self._fleet.heartbeat(node_id, codec.load_from_pb(message.heartbeat))
                self._ping(link)
            elif kind == "pong":
                sent_s = link.pings.pop(message.pong.nonce, None)
                if sent_s is not None:
                    self._fleet.rtt(node_id, (self._clock() - sent_s) * 1000)
            elif kind == "cache_report":
                self._cache_report(link, message.cache_report)
        return ENDED

    def _heard(self, node_id: str) -> None:
        if self._fleet.heard(node_id):
            self._metrics.link_events.labels("suspected").inc()

    def _ping(self, link: _Link) -> None:
        """One ping per heartbeat at first, then one in a while; several may be on the way, as a round trip
        can outlast the interval."""
        now_s = self._clock()
        if link.next_nonce >= QUICK_PINGS and now_s - link.pinged_s < PING_GAP_S:
            return
        link.next_nonce += 1
        link.pinged_s = link.pings[link.next_nonce] = now_s
        link.pings.pop(link.next_nonce - MAX_PINGS, None)
        link.session.send(PingCommand(link.next_nonce))

    def _cache_report(self, link: _Link, report: node_pb2.CacheReport) -> None:
        now_s = self._clock()
        if now_s - link.reports_since_s > 1.0:
            link.reports, link.reports_since_s = 0, now_s
        link.reports += 1
        if link.reports > MAX_REPORTS_PER_S:  # nodes coalesce theirs to four
            link.session.close(f"more than {MAX_REPORTS_PER_S} cache reports in a second")
            return
        delta = codec.cache_from_pb(report)
        agrees = self._fleet.cache_report(link.session.node_id, delta)
        if agrees or delta.full:
            link.resync_asked = False
        elif not link.resync_asked:
            link.resync_asked = True
            link.session.send(CacheResyncCommand())

    def _end(self, session: NodeSession, reason: str) -> None:
        self._fleet.remove(session.node_id, session.link_epoch)
        if self._registry.remove(session, reason):
            self._metrics.link_events.labels("lost").inc()
            log.info("node link ended", extra={"node_id": session.node_id, "reason": reason})

    # --- data ---------------------------------------------------------------------------------------

    async def Data(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        hello = (await _first_message(context, "hello")).hello
        link = self._by_token.get(hello.link_token)
        if link is None or link.session.node_id != hello.node_id:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown link token")
        assert link is not None
        if link.has_data.is_set():
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "this link has its data stream")
        session = link.session
        await context.write(node_pb2.DataResponse(opened=node_pb2.Opened()))
        link.has_data.set()
        try:
            reason = await _first_of(
                self._read_data(context, session), _write_data(context, session), _closed(session)
            )
        finally:
            session.close("the node's data stream was lost")
        _say_why(context, reason)

    async def _read_data(self, context: Any, session: NodeSession) -> str:
        while (message := await context.read()) is not grpc.aio.EOF:
            self._heard(session.node_id)
            kind = message.WhichOneof("message")
            if kind == "chunk_batch":
                self._fleet.delivered(session.node_id)
                session.deliver([codec.output_from_pb(o) for o in message.chunk_batch.outputs])
            elif kind == "bounce":
                failure = codec.failure_from_pb(message.bounce.failure)
                key = codec.key_from_pb(message.bounce.key)
                full = failure.cause is Cause.OVERLOADED
                self._fleet.bounced(session.node_id, key, message.bounce.queued if full else None)
                session.bounced(key, failure)
            elif kind == "fragment_ack":
                session.acked(message.fragment_ack.bytes)
        return ENDED

    # --- watch --------------------------------------------------------------------------------------

    async def watch(self, interval_s: float = 0.5) -> None:
        """Gives up silent links and lets health follow time; runs until cancelled."""
        while True:
            slept_from_s = self._clock()
            await asyncio.sleep(interval_s)
            overslept_s = self._clock() - slept_from_s - interval_s
            if overslept_s > OVERSLEPT_S:
                log.warning("the event loop stood still", extra={"seconds": round(overslept_s, 2)})
                self._fleet.overslept(overslept_s)
            for node_id, silent_s in self._fleet.silent_nodes():
                session = self._registry.get(node_id)
                if session is not None:
                    session.close(f"the node was silent for {silent_s:.1f} s")
            self._fleet.refresh()

    async def close_all(self) -> None:
        """Ends every link, for shutdown."""
        self.draining = True
        for session in self._registry.sessions():
            session.close("this gateway is shutting down", Cause.DRAINING)


async def _first_message(context: Any, kind: str) -> Any:
    """What a stream begins with; ends the RPC when it does not come or is something else."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            first = await context.read()
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no {kind} came")
    except (DecodeError, UnicodeDecodeError, ValueError):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not valid protobuf")
    if first is grpc.aio.EOF or first.WhichOneof("message") != kind:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the first message must be {kind}")
    return first


def _say_why(context: Any, reason: str) -> None:
    """The node's log shall say why its link was ended."""
    if reason != ENDED:
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details(reason)


async def _first_of(*steps: Any) -> str:
    """Runs the parts of a link; the first to end ends all. Returns why."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    task = done.pop()
    error = task.exception()
    if error is None:
        return str(task.result())
    # What it says may quote what a user sent: our log shows where, the node only hears the kind.
    log.warning("a link's stream broke", exc_info=error)
    return f"stream broken: {type(error).__name__}"


async def _closed(session: NodeSession) -> str:
    await session.closed.wait()
    return session.close_reason


async def _write_control(context: Any, session: NodeSession) -> str:
    while True:
        await context.write(encode_control(await session.next_control()))


async def _write_data(context: Any, session: NodeSession) -> str:
    while True:
        await context.write(encode_data(await session.next_data()))
