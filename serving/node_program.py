"""What edge_node and cloud_node share: one node from its start to its end, and what is asked about it.

The order matters. Listeners come up before this, so a request meets a clear 503 while the engine loads; links
come up after the engine, because a node announces what it measured. At the end the gateways learn first that
the node drains, running work gets its grace, the last outputs are read by the gateways, and only then do the
links go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from serving.engine_settings import EngineSettings, build_engine, check_files
from serving.engines.base import EngineUnavailable
from serving.identity import IdentityError, NodeIdentity, load_identity
from serving.node import LocalBackend, NamedIdentity, NodeRuntime
from serving.node.power import PowerWatch
from serving.node_settings import LinkSettings, NodeSettings
from serving.openai_api.backend import ModelCard
from serving.startup import ProgramArgs, ProgramError, check_all, is_loopback
from tidegate.link.seam import NodeService
from tidegate.routing.domain import Code, GenerateEvent, GenerateRequest, NodeLoad, ServeError

if TYPE_CHECKING:
    from serving.metrics import NodeMetrics
    from tidegate.link.client import LinkClient

_log = logging.getLogger(__name__)

LINK_STOP_S = 1.0
# Last words get this long even when the work itself took all of the grace.
MIN_FLUSH_S = 1.0
LOADING_RETRY_MS = 1000.0


class StartingBackend:
    """A GenerateBackend that answers UNAVAILABLE until the real one is there."""

    def __init__(self) -> None:
        self._inner: LocalBackend | None = None

    def open(self, inner: LocalBackend) -> None:
        self._inner = inner

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        return self._opened().generate(request)

    def models(self, tenant: str) -> Sequence[ModelCard]:
        return self._opened().models(tenant)

    def _opened(self) -> LocalBackend:
        if self._inner is None:
            raise ServeError(
                Code.UNAVAILABLE,
                "The engine is still loading its model",
                reason="ENGINE_LOADING",
                retry_after_ms=LOADING_RETRY_MS,
            )
        return self._inner


class Links:
    """The links to all configured gateways; each has a task of its own and never gives up."""

    def __init__(self, service: NodeService, settings: LinkSettings, identity: NodeIdentity) -> None:
        """Raises SettingsError for a token or certificate that cannot be read."""
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[LinkClient] = []
        if not settings.gateways:
            return
        # A device without a gateway does not carry gRPC in memory.
        from serving.tls import client_tls
        from tidegate.link.client import LinkClient, LinkCredentials

        token = settings.join_token
        credentials = LinkCredentials(
            next_link_epoch=identity.next_link_epoch,
            prove=identity.prove,
            join_token=token.read() if token.is_configured else "",
            tls=client_tls(settings.tls, "link.tls") if settings.tls is not None else None,
        )
        rng = random.SystemRandom().random
        self._clients = [
            LinkClient(service, address, credentials, clock=time.monotonic, rng=rng)
            for address in settings.gateways
        ]

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Between start() and flush() or stop() none of them ends."""
        return tuple(self._tasks)

    @property
    def connected(self) -> int:
        return sum(client.connected for client in self._clients)

    def start(self) -> None:
        for client in self._clients:
            self._tasks.append(asyncio.create_task(client.run(), name=f"link-{client.address}"))

    async def flush(self, grace_s: float) -> bool:
        """False when grace_s was too short for every gateway to read the last outputs."""
        return all(await asyncio.gather(*(client.flush(grace_s) for client in self._clients)))

    async def stop(self, grace_s: float) -> None:
        await asyncio.gather(*(client.stop(grace_s) for client in self._clients))


class NodeProgram:
    """One node. Make it once listeners are bound, then run() it; `backend` may be served from the start."""

    def __init__(self, settings: NodeSettings, args: ProgramArgs) -> None:
        """Raises ProgramError or SettingsError for an identity, engine or link that cannot be had."""
        check_links(settings.link, insecure=args.insecure)
        self._settings = settings
        try:
            engine = build_engine(settings.engine, state_folder=settings.state_folder())
            self._identity = load_identity(settings.state_folder())
        except (IdentityError, EngineUnavailable) as error:
            raise ProgramError(str(error)) from error
        named = NamedIdentity(self._identity.node_id, self._identity.boot_id, settings.shown_name)
        self._power = PowerWatch(settings.power.options(), self._is_busy)
        self.runtime = NodeRuntime(
            engine, named, direct_endpoints=settings.link.direct_endpoints, power=self._power.now
        )
        self._watching: asyncio.Task[None] | None = None
        self.backend = StartingBackend()
        self._started = False
        self._metrics: NodeMetrics | None = None
        try:
            self._links = Links(self.runtime, settings.link, self._identity)
        except BaseException:
            self._identity.close()
            raise

    def _is_busy(self) -> bool:
        load = self.load()
        return load is not None and load.running > 0

    def load(self) -> NodeLoad | None:
        """None until the engine has started."""
        return self.runtime.load() if self._started else None

    @property
    def not_ready_because(self) -> str:
        """One word for /readyz, "" when the node takes work."""
        load = self.load()
        if load is None:
            return "loading"
        return "draining" if load.draining else "" if load.ready else "engine"

    async def run(self, stop: asyncio.Event) -> None:
        """From loading to the end after `stop`.

        Raises ProgramError when the engine cannot start, and when a part ends that must not: a service
        manager then starts the program again, while one that only seems to live would be left alone.
        """
        try:
            if await self._start_engine(stop):
                self._watching = asyncio.create_task(self._power.run(), name="node-power")
                self._links.start()
                ended = await self._until_stop(stop)
                await self._drain()
                if ended:
                    raise ProgramError(f"{ended} ended, which it never should: see the log, and report it")
        finally:
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.wait((self._watching,))
            await self.runtime.stop(0.0)
            await self._links.stop(LINK_STOP_S)
            self._identity.close()

    async def _until_stop(self, stop: asyncio.Event) -> str:
        """Waits for `stop`, or for the end of a part; returns the name of that part."""
        parts = [*self.runtime.tasks, *self._links.tasks]
        if self._watching is not None:
            parts.append(self._watching)
        stopping = asyncio.create_task(stop.wait(), name="stop-wait")
        try:
            await asyncio.wait((stopping, *parts), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await asyncio.wait((stopping,))
        ended = next((part for part in parts if part.done()), None)
        if stop.is_set() or ended is None:
            return ""
        error = None if ended.cancelled() else ended.exception()
        _log.error("a part of the node ended", exc_info=error, extra={"task": ended.get_name()})
        return ended.get_name()

    async def _start_engine(self, stop: asyncio.Event) -> bool:
        """False when `stop` came first."""
        began = time.monotonic()
        starting = asyncio.create_task(self.runtime.start(), name="engine-start")
        stopping = asyncio.create_task(stop.wait(), name="stop-wait")
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return False
            info = await starting
        except EngineUnavailable as error:
            raise ProgramError(str(error)) from error
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.wait((starting, stopping))
        self.backend.open(LocalBackend(self.runtime, tier=self._settings.tier))
        self._started = True
        _log.info(
            "engine ready",
            extra={
                "node_id": self._identity.node_id,
                "node": self._settings.shown_name,
                "models": [variant.model for variant in info.variants],
                "build": info.build,
                "load_s": round(time.monotonic() - began, 2),
                "gateways": list(self._settings.link.gateways),
            },
        )
        return True

    async def _drain(self) -> None:
        """Lets work end, then its last outputs arrive, all within one grace."""
        grace_s = self._settings.drain_grace_s
        began = time.monotonic()
        self.runtime.drain()
        if not await self.runtime.wait_drained(grace_s):
            _log.warning("work was cut off", extra={"grace_s": grace_s})
        await self.runtime.stop(0.0)
        left_s = max(MIN_FLUSH_S, grace_s - (time.monotonic() - began))
        if not await self._links.flush(left_s):
            _log.warning("a gateway did not read the last outputs", extra={"grace_s": grace_s})

    # --- what is asked about it ---

    def add_admin_routes(self, app: web.Application, may_scrape: Callable[[web.Request], None]) -> None:
        """Adds /healthz (the process lives), /readyz (the engine takes work) and /metrics.

        `may_scrape` raises for a request that must not see metrics.
        """

        async def healthz(_: web.Request) -> web.Response:
            return web.json_response({"status": "ok"})

        async def readyz(_: web.Request) -> web.Response:
            reason = self.not_ready_because
            if not reason:
                return web.json_response({"status": "ready"})
            return web.json_response(
                {"status": "not_ready", "reason": reason}, status=503, headers={"Retry-After": "1"}
            )

        async def metrics(request: web.Request) -> web.Response:
            may_scrape(request)
            from serving.metrics import CONTENT_TYPE, NodeMetrics

            if self._metrics is None:
                self._metrics = NodeMetrics(self.load, self._link_counts)
            return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

        app.router.add_get("/healthz", healthz)
        app.router.add_get("/readyz", readyz)
        app.router.add_get("/metrics", metrics)

    def _link_counts(self) -> tuple[int, int]:
        return self._links.connected, len(self._settings.link.gateways)


def check_links(link: LinkSettings, *, insecure: bool) -> None:
    """Raises ProgramError when prompts and token would cross a network in the clear, unless `insecure`."""
    for address in link.gateways:
        if link.tls is None and not is_loopback(address.rpartition(":")[0]) and not insecure:
            raise ProgramError(
                f"link.gateways: refusing a plain link to {address}: configure link.tls, or pass --insecure "
                "if the network is trusted"
            )


def check_node(settings: NodeSettings, args: ProgramArgs) -> None:
    """What --check-config finds besides types. Raises SettingsError or ProgramError."""
    from serving.tls import client_tls

    link = settings.link

    def engine(part: Callable[[EngineSettings], object]) -> None:
        try:
            part(settings.engine)
        except EngineUnavailable as error:
            raise ProgramError(str(error)) from error

    check_all(
        lambda: check_links(link, insecure=args.insecure),
        lambda: link.join_token.read() if link.join_token.is_configured else None,
        lambda: None if link.tls is None else client_tls(link.tls, "link.tls"),
        lambda: engine(build_engine),
        lambda: engine(check_files),
    )
