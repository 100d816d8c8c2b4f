"""One gateway replica: its parts, its start and its bounded stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import secrets
import time
from dataclasses import dataclass

from aiohttp import web

from gateway.analysis import Analyzer
from gateway.app import wiring
from gateway.dispatch import Dispatcher
from gateway.dispatch.facts import Facts
from gateway.dispatch.intake import Intake
from gateway.dispatch.line import Line
from gateway.dispatch.probes import Probes
from gateway.dispatch.resume import ResumeTokens
from gateway.settings import GatewaySettings
from gateway.state import Fleet, Sessions
from gateway.state.certificates import Certificates
from gateway.state.sync import StoreSync
from gateway.telemetry import Metrics, RequestLog
from gateway.transport.client_server import GatewayServicer
from gateway.transport.http_server import DispatchBackend, build_app
from gateway.transport.link_server import NodeLinkServicer
from gateway.transport.servers import ClientServer, LinkServer
from gateway.upstream import LinkRegistry
from serving.openai_api import FrontOptions, make_runner
from serving.startup import ProgramArgs, bind_socket
from serving.tls import server_ssl_context
from tidegate.routing.admission import AdmissionQueue
from tidegate.routing.baselines import policy_named
from tidegate.routing.crowding import Crowding
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.margin import Margins
from tidegate.routing.quality import CertifiedQuality, RankedQuality

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.25
PROBE_INTERVAL_S = 1.0
# By then drain_s is over; what is left are answers on their way out.
HTTP_SHUTDOWN_S = 1.0
# Messages are short-lived and almost free of cycles. Walking two thousand young objects takes a few ms, the
# old ones with a thousand nodes among them a tenth of a second, in which every stream stands still.
GC_THRESHOLDS = (2_000, 50, 100)


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
        secret = wiring.fleet_secret(settings)
        self.metrics = Metrics()
        self.fleet = Fleet(
            clock, suspect_after_s=settings.link.suspect_after_s, lost_after_s=settings.link.lost_after_s
        )
        self.registry = LinkRegistry()
        self.clients = wiring.clients(settings)
        self._classes = wiring.data_classes(settings)
        self._sessions = Sessions(secret + b"sessions", clock, stricter=self._classes.stricter)
        self._latency = LearnedLatency()
        self._admission = wiring.admission(settings)
        analyzer = wiring.analyzer(settings, secret)
        self._outcomes = wiring.outcomes(settings, analyzer.fingerprint, self._best)
        self._certificates = Certificates(settings.quality.certificates, analyzer.fingerprint, self._best)
        self._store = wiring.store(settings)
        self._sync = StoreSync(
            self._store,
            self.fleet,
            self._sessions,
            self.replica_id,
            interval_s=settings.store.interval_ms / 1000,
            alone=settings.store.url is None,
            learning=self._latency,
            on_health=lambda up: self.metrics.store_up.set(1 if up else 0),
        )
        self.links = NodeLinkServicer(
            self.fleet,
            self.registry,
            wiring.operator(settings),
            self.metrics,
            replica_id=self.replica_id,
            clock=clock,
            heartbeat_s=settings.link.heartbeat_s,
            on_new_boot=self._latency.forget,
        )
        self.dispatcher = self._dispatcher(secret, analyzer)
        servicer = GatewayServicer(
            self.dispatcher,
            self.fleet,
            self.clients,
            names=wiring.model_names(settings),
            write_stall_s=settings.limits.write_stall_s,
        )
        self._client_server = ClientServer(servicer, self.metrics)
        self._link_server = LinkServer(self.links)
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _best(self) -> str:
        """Digest of the best variant now, which all others are measured against."""
        return RankedQuality(self.fleet.snapshot(), self.settings.quality.order).best

    def _dispatcher(self, secret: bytes, analyzer: Analyzer) -> Dispatcher:
        s, clock = self.settings, time.monotonic
        request_log = RequestLog()
        self._facts = Facts(
            self._latency,
            self.metrics,
            request_log,
            self.fleet.mark_stalled,
            Margins(s.routing.margin_limit),
            Crowding(s.routing.crowding_weight),
        )
        self._probes = Probes(
            self.fleet,
            self.registry,
            self._latency,
            self._facts,
            after_s=s.routing.probe_after_s,
            clock=clock,
            rng=random.random,
            new_token=lambda: secrets.token_urlsafe(12),
        )
        classes = self._classes
        queue = AdmissionQueue(wiring.admission_limits(s), self._latency)
        return Dispatcher(
            fleet=self.fleet,
            upstream=self.registry,
            intake=Intake(analyzer, self._sessions, classes, wiring.levels(s), clock),
            sessions=self._sessions,
            classes=classes,
            policy=policy_named(s.routing.policy),
            model=self._latency,
            facts=self._facts,
            metrics=self.metrics,
            log=request_log,
            admission=self._admission,
            line=Line(queue, self.metrics, clock, reserved=wiring.reserved_tenants(s)),
            options=wiring.dispatch_options(s),
            clock=clock,
            rng=random.random,
            new_token=lambda: secrets.token_urlsafe(24),
            resume_tokens=ResumeTokens(secret),
            outcomes=self._outcomes,
            quality_of=lambda snapshot: CertifiedQuality(
                snapshot, self._certificates.certified, s.quality.order
            ),
            ranked_of=lambda snapshot: RankedQuality(snapshot, s.quality.order),
        )

    async def start(self) -> Ports:
        """Raises ProgramError when a port is not to be had."""
        s = self.settings
        ports = Ports(
            grpc=self._client_server.listen(s.grpc),
            link=self._link_server.listen(s.link),
            http=await self._start_http(),
        )
        await self._client_server.start()
        await self._link_server.start()
        for step in (self._sync.run(), self.links.watch(), self._learn(), self._probe()):
            self._tasks.append(asyncio.create_task(step))
        log.info(
            "gateway is up",
            extra={"replica": self.replica_id, "grpc": ports.grpc, "link": ports.link, "http": ports.http},
        )
        return ports

    async def _start_http(self) -> int:
        s = self.settings
        options = FrontOptions(write_stall_s=s.limits.write_stall_s, shutdown_s=HTTP_SHUTDOWN_S)
        app = build_app(
            backend=DispatchBackend(self.dispatcher, self.fleet, self.clients, wiring.model_names(s)),
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

    async def _learn(self) -> None:
        """What running attempts teach, what time alone changes in what was learned, newer certificates."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self._facts.look(time.monotonic())
            self._latency.decay(LOOK_INTERVAL_S)
            self._facts.fade(LOOK_INTERVAL_S)
            self._certificates.refresh()

    async def _probe(self) -> None:
        """Idle nodes are asked for a few tokens now and then, one node at a time."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self._probes.once()

    async def wait_failed(self) -> None:
        """Returns when one of the replica's own tasks ended, which none should."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Refuses new requests, lets running ones finish inside limits.drain_s, then closes everything."""
        self._admission.draining = True
        await self._client_server.drain()
        await self._admission.drain(self.settings.limits.drain_s)
        await self.dispatcher.close()
        await self.links.close_all()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(self._client_server.stop(1.0), self._link_server.stop(1.0))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The last turns' data classes must reach the other replicas, and what was learned the next one.
        await self._sync.once(last=True)
        await self._store.close()
        self._outcomes.close()


def _spare_the_collector() -> None:
    """What is loaded now stays: walking all of it again and again stops every stream for tens of ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def main(settings: GatewaySettings, args: ProgramArgs, stop: asyncio.Event) -> None:
    """Runs a replica until `stop`."""
    wiring.check_doors(settings, args)
    app = GatewayApp(settings)
    try:
        await app.start()
        _spare_the_collector()
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
