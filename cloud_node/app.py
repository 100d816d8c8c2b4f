"""The cloud node: its health first, then the engine, then the links."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from urllib.parse import urlsplit

from aiohttp import web

from cloud_node.settings import AdminSettings, CloudSettings
from serving.node_program import NodeProgram, check_node
from serving.security import TokenTable, bearer
from serving.settings import SettingsError
from serving.startup import ProgramArgs, bind_socket, check_all, check_exposure, is_loopback
from serving.tls import server_ssl_context

_log = logging.getLogger(__name__)

_ADMIN_SHUTDOWN_S = 0.5


def check_cloud(settings: CloudSettings, args: ProgramArgs) -> None:
    """What --check-config finds besides types. Raises SettingsError or ProgramError."""
    check_all(
        lambda: _check_gateways(settings),
        lambda: None if settings.admin is None else _check_admin(settings.admin, args),
        lambda: check_node(settings, args),
    )


def _check_gateways(settings: CloudSettings) -> None:
    if not settings.link.gateways:
        raise SettingsError("link.gateways: must name at least one gateway, like gateway.example:50052")


def _check_admin(
    admin: AdminSettings, args: ProgramArgs
) -> tuple[TokenTable[bool] | None, SSLContext | None]:
    """The key and the certificate of its listener. Raises SettingsError or ProgramError."""
    keys = TokenTable([(admin.key.read(), True)]) if admin.key.is_configured else None
    check_exposure({"admin": admin}, keys_configured=keys is not None, insecure=args.insecure)
    return keys, None if admin.tls is None else server_ssl_context(admin.tls, "admin.tls")


async def run_cloud(settings: CloudSettings, args: ProgramArgs, stop: asyncio.Event) -> None:
    """The node's life. Raises ProgramError or SettingsError for what keeps it from starting."""
    _check_gateways(settings)
    _warn_of_plain_key(settings)
    if settings.admin is None:
        await NodeProgram(settings, args).run(stop)
        return
    async with _admin(settings, settings.admin, args) as node:
        await node.run(stop)


@asynccontextmanager
async def _admin(
    settings: CloudSettings, admin: AdminSettings, args: ProgramArgs
) -> AsyncIterator[NodeProgram]:
    """The node, while its health and metrics are served."""
    keys, tls = _check_admin(admin, args)
    listening = bind_socket(admin, "admin", settings.program)
    try:
        node = NodeProgram(settings, args)
        runner = web.AppRunner(_app(node, keys), access_log=None, shutdown_timeout=_ADMIN_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.SockSite(runner, listening, ssl_context=tls).start()
            host, port = listening.getsockname()[:2]
            _log.info("admin listener is up", extra={"address": f"{host}:{port}", "tls": tls is not None})
            yield node
        finally:
            await runner.cleanup()
    finally:
        listening.close()


def _app(node: NodeProgram, keys: TokenTable[bool] | None) -> web.Application:
    def may_scrape(request: web.Request) -> None:
        if keys is not None and not keys.lookup(bearer(request.headers.get("Authorization"))):
            raise web.HTTPUnauthorized(text="metrics need the admin key\n")

    app = web.Application()
    node.add_admin_routes(app, may_scrape)
    return app


def _warn_of_plain_key(settings: CloudSettings) -> None:
    engine = settings.engine
    url = urlsplit(engine.openai_http.base_url)
    is_plain = url.scheme == "http" and not is_loopback(url.hostname or "")
    if engine.kind == "openai_http" and engine.openai_http.api_key.is_configured and is_plain:
        _log.warning(
            "the upstream server's key and all prompts cross the network in the clear: use https",
            extra={"upstream_host": url.hostname},
        )
