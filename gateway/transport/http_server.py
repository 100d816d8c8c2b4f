"""The HTTP door: OpenAI API, metrics, health."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from gateway.dispatch import Dispatcher
from gateway.state import Fleet
from gateway.telemetry import Metrics
from gateway.transport.clients import ClientDirectory
from gateway.transport.fleet_view import models_of
from gateway.transport.http_feedback import add_feedback
from serving.openai_api import FrontOptions, ModelCard, build_routes, local_guard
from serving.startup import is_loopback
from tidegate.routing.domain import GenerateEvent, GenerateRequest, Health
from tidegate.routing.naming import ModelNames
from tidegate.wire.validate import check_request

# Leaves room in the 128 characters of a request id for a number.
MAX_LABEL = 100


class DispatchBackend:
    """Implements GenerateBackend over the dispatcher. `request.tenant` is the name of the caller's key."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        fleet: Fleet,
        clients: ClientDirectory,
        names: ModelNames | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self._fleet = fleet
        self._clients = clients
        self._names = names
        self._numbers = itertools.count(1)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        client = self._clients.client(request.tenant)
        # Meshes copy one x-request-id onto all calls of a page: it is a label here, never an exclusive id.
        request_id = f"{request.request_id[:MAX_LABEL]}:{next(self._numbers)}"
        asked = check_request(replace(request, request_id=request_id, tenant=client.tenant))
        async with aclosing(self.dispatcher.generate(asked, client)) as events:
            async for event in events:
                yield event

    def models(self, tenant: str) -> Sequence[ModelCard]:
        cards = [ModelCard("auto")]
        # As in generate(), the name of the caller's key.
        caller = self._clients.client(tenant)
        for model in models_of(self._fleet.snapshot(), caller.tenant, self._names):
            context = max((v.context_tokens for v in model.variants), default=0)
            cards.append(ModelCard(model.name, model.aliases, context))
        return cards


def build_app(
    *,
    backend: DispatchBackend,
    fleet: Fleet,
    metrics: Metrics,
    clients: ClientDirectory,
    options: FrontOptions,
    host: str,
    allowed_hosts: tuple[str, ...],
    is_draining: Callable[[], bool],
) -> web.Application:
    """All HTTP routes of a gateway. Metrics need an admin key when the listener is not on loopback."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        """Ready means that a request could be served: never green without a ready node."""
        ready = sum(1 for n in fleet.snapshot().nodes if n.linked_here and n.health is Health.READY)
        state = "draining" if is_draining() else "ready" if ready else "no ready node"
        return web.json_response(
            {"status": state, "ready_nodes": ready}, status=200 if state == "ready" else 503
        )

    async def metrics_page(request: web.Request) -> web.Response:
        if not is_loopback(host):
            name = clients.authenticate(request.headers.get("Authorization"))
            if not clients.client(name).is_admin:
                raise web.HTTPForbidden(reason="this needs a key with the admin scope")
        count_nodes(fleet, metrics)
        return web.Response(body=metrics.exposition(), headers={"Content-Type": metrics.content_type})

    guards = [local_guard(allowed_hosts)] if clients.open and is_loopback(host) else []
    app = web.Application(client_max_size=options.max_body_bytes, middlewares=guards)
    build_routes(app, backend, clients.http_caller, options)
    add_feedback(app, backend.dispatcher, clients)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_page)
    return app


def count_nodes(fleet: Fleet, metrics: Metrics) -> None:
    metrics.nodes.clear()
    for node in fleet.snapshot().nodes:
        if node.linked_here:
            metrics.nodes.labels(node.binding.tier.value, node.health.value).inc()
