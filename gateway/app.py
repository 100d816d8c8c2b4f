"""Puts a gateway replica together and runs it."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from dataclasses import dataclass

import grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.analysis import Analyzer
from gateway.dispatch import DataClasses, Dispatcher, DispatchOptions, Levels
from gateway.dispatch.admission import Admission
from gateway.dispatch.attempt import StallLimits
from gateway.dispatch.caller import Client
from gateway.dispatch.facts import Facts
from gateway.dispatch.intake import Intake
from gateway.settings import GatewaySettings
from gateway.state import Fleet, OperatorTable, Sessions, Store
from gateway.state.memory_store import MemoryStore
from gateway.state.redis_store import RedisStore
from gateway.state.sync import StoreSync
from gateway.telemetry import Metrics, RequestLog
from gateway.transport.client_server import GatewayServicer
from gateway.transport.clients import ClientDirectory, ClientEntry
from gateway.transport.guard import Guard
from gateway.transport.http_server import DispatchBackend, build_app
from gateway.transport.link_server import NodeLinkServicer
from gateway.upstream import LinkRegistry
from serving.openai_api import FrontOptions, make_runner
from serving.settings import ListenSettings, TlsSettings
from serving.startup import ProgramArgs, bind_problem, bind_socket, check_exposure
from serving.tls import read_pem, server_ssl_context
from tidegate.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tidegate.node.v1 import node_pb2_grpc
from tidegate.routing.baselines import policy_named
from tidegate.routing.correction import Corrections
from tidegate.routing.domain import Binding, ClassRule, Tier
from tidegate.routing.latency import FirstPrinciples
from tidegate.wire.channels import server_options

log = logging.getLogger(__name__)

DECAY_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the replica listens, known once it is up."""

    grpc: int
    link: int
    http: int


class GatewayApp:
    """One replica. start() brings it up, stop() drains it; both are bounded."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.replica_id = settings.replica_id or f"gw-{secrets.token_hex(4)}"
        clock = time.monotonic
        secret = _fleet_secret(settings)
        self.metrics = Metrics()
        self.fleet = Fleet(clock, lost_after_s=settings.link.lost_after_s)
        self.registry = LinkRegistry()
        self.clients = _clients(settings)
        self._sessions = Sessions(secret + b"sessions")
        self._corrections = Corrections()
        self._admission = Admission(settings.limits.in_flight)
        self._store = _store(settings)
        self._sync = StoreSync(
            self._store,
            self.fleet,
            self._sessions,
            self.replica_id,
            interval_s=settings.store.interval_ms / 1000,
            on_health=lambda up: self.metrics.store_up.set(1 if up else 0),
        )
        self.links = NodeLinkServicer(
            self.fleet,
            self.registry,
            _operator(settings),
            self.metrics,
            replica_id=self.replica_id,
            clock=clock,
            heartbeat_s=settings.link.heartbeat_s,
        )
        self.dispatcher = self._dispatcher(secret)
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _dispatcher(self, secret: bytes) -> Dispatcher:
        s, clock = self.settings, time.monotonic
        request_log = RequestLog()
        classes = _data_classes(s)
        limits = s.limits
        levels = Levels(
            min_p_good=s.routing.min_p_good,
            target_share=s.routing.target_share,
            max_tokens=s.routing.max_tokens,
            max_tokens_limit=s.routing.max_tokens_limit,
            aliases=s.routing.aliases,
        )
        return Dispatcher(
            fleet=self.fleet,
            upstream=self.registry,
            intake=Intake(Analyzer(secret), self._sessions, classes, levels, clock),
            sessions=self._sessions,
            classes=classes,
            policy=policy_named(s.routing.policy),
            model=FirstPrinciples(corrections=self._corrections),
            facts=Facts(self._corrections, self.metrics, request_log, self.fleet.mark_stalled),
            metrics=self.metrics,
            log=request_log,
            admission=self._admission,
            options=DispatchOptions(
                max_attempts=limits.max_attempts,
                credits=limits.credits,
                stall=StallLimits(first_s=limits.first_token_stall_s, between_s=limits.token_stall_s),
            ),
            clock=clock,
            rng=random.random,
            new_token=lambda: secrets.token_urlsafe(24),
        )

    async def start(self) -> Ports:
        """Raises ProgramError when a port is not to be had."""
        s = self.settings
        client_server = grpc.aio.server(
            interceptors=[Guard(self.metrics)], options=server_options(max_concurrent_streams=100)
        )
        servicer = GatewayServicer(
            self.dispatcher, self.fleet, self.clients, write_stall_s=s.limits.write_stall_s
        )
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, client_server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, client_server)
        service = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name
        names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, client_server)
        link_server = grpc.aio.server(options=server_options(small_window=True))
        node_pb2_grpc.add_NodeLinkServiceServicer_to_server(self.links, link_server)
        ports = Ports(
            grpc=_listen(client_server, s.grpc, "grpc"),
            link=_listen(link_server, s.link, "link"),
            http=await self._start_http(),
        )
        for server in (client_server, link_server):
            await server.start()
            self._servers.append(server)
        for name in ("", service):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        for step in (self._sync.run(), self.links.watch(), self._decay()):
            self._tasks.append(asyncio.create_task(step))
        log.info(
            "gateway is up",
            extra={"replica": self.replica_id, "grpc": ports.grpc, "link": ports.link, "http": ports.http},
        )
        return ports

    async def _start_http(self) -> int:
        s = self.settings
        options = FrontOptions(write_stall_s=s.limits.write_stall_s, shutdown_s=s.limits.drain_s)
        app = build_app(
            backend=DispatchBackend(self.dispatcher, self.fleet, self.clients),
            fleet=self.fleet,
            metrics=self.metrics,
            clients=self.clients,
            options=options,
            host=s.http.host,
            allowed_hosts=s.http.allowed_hosts,
            is_draining=lambda: self._admission.draining,
        )
        self._runner = make_runner(app, options)
        await self._runner.setup()
        tls = None if s.http.tls is None else server_ssl_context(s.http.tls, "http.tls")
        bound = bind_socket(s.http, "http", "gateway")
        await web.SockSite(self._runner, bound, ssl_context=tls).start()
        return int(bound.getsockname()[1])

    async def _decay(self) -> None:
        """A node shunned for being slow gets another chance with time."""
        while True:
            await asyncio.sleep(DECAY_INTERVAL_S)
            self._corrections.decay(DECAY_INTERVAL_S)

    async def wait_failed(self) -> None:
        """Returns when one of the replica's own tasks ended, which none should."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Refuses new requests, lets running ones finish inside limits.drain_s, then closes everything."""
        self._admission.draining = True
        await self._health.enter_graceful_shutdown()
        await self._admission.drain(self.settings.limits.drain_s)
        await self.links.close_all()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*(server.stop(1.0) for server in self._servers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()


async def main(settings: GatewaySettings, args: ProgramArgs, stop: asyncio.Event) -> None:
    """Runs a replica until `stop`."""
    check_exposure(
        {"grpc": settings.grpc, "http": settings.http},
        keys_configured=bool(settings.clients),
        insecure=args.insecure,
    )
    check_exposure(
        {"link": settings.link},
        keys_configured=any(rule.join_token is not None for rule in settings.nodes),
        insecure=args.insecure,
    )
    app = GatewayApp(settings)
    try:
        await app.start()
        stopping = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(app.wait_failed())
        done, _ = await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, failing):
            task.cancel()
        await asyncio.gather(stopping, failing, return_exceptions=True)
        if failing in done:
            failing.result()
    finally:
        await app.stop()


def _listen(server: grpc.aio.Server, listen: ListenSettings, key: str) -> int:
    address = f"{listen.host}:{listen.port}"
    try:
        if listen.tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, _grpc_credentials(listen.tls, key)))
    except RuntimeError as error:
        raise bind_problem(listen, key, "gateway") from error


def _grpc_credentials(tls: TlsSettings, key: str) -> grpc.ServerCredentials:
    pair = (read_pem(tls.key_file, f"{key}.tls.key_file"), read_pem(tls.cert_file, f"{key}.tls.cert_file"))
    ca = None if tls.client_ca_file is None else read_pem(tls.client_ca_file, f"{key}.tls.client_ca_file")
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def _fleet_secret(settings: GatewaySettings) -> bytes:
    if settings.fleet_secret.is_configured:
        return settings.fleet_secret.read().encode()
    if settings.store.url is not None:
        log.warning("fleet_secret is not set: replicas will not share sessions and warm prefixes")
    return secrets.token_bytes(32)


def _store(settings: GatewaySettings) -> Store:
    if settings.store.url is None:
        return MemoryStore(time.monotonic)
    return RedisStore(
        settings.store.url, prefix=settings.store.prefix, timeout_s=settings.store.timeout_ms / 1000
    )


def _clients(settings: GatewaySettings) -> ClientDirectory:
    return ClientDirectory(
        ClientEntry(c.name, c.key.read(), Client(c.tenant, c.data_class, c.admin)) for c in settings.clients
    )


def _operator(settings: GatewaySettings) -> OperatorTable:
    tokens, nodes = [], {}
    for rule in settings.nodes:
        binding = Binding(Tier(rule.tier), rule.region, rule.trust, rule.cost_per_mtoken)
        if rule.join_token is not None:
            tokens.append((rule.join_token.read(), binding))
        nodes.update(dict.fromkeys(rule.node_ids, binding))
    default = None if settings.default_tier is None else Binding(Tier(settings.default_tier))
    return OperatorTable(tokens=tokens, nodes=nodes, default=default)


def _data_classes(settings: GatewaySettings) -> DataClasses:
    return DataClasses(
        [
            (c.name, ClassRule(frozenset(c.tiers), frozenset(c.regions), frozenset(c.trust)))
            for c in settings.data_classes
        ]
    )
