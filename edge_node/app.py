"""The device daemon: its own API first, then the engine, then the links."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass

from aiohttp import web

from edge_node.settings import EdgeSettings, LocalApiSettings
from serving.node_program import NodeProgram, check_node
from serving.openai_api.app import build_routes, make_runner
from serving.openai_api.backend import Caller
from serving.openai_api.guard import local_guard
from serving.openai_api.options import FrontOptions
from serving.security import TokenTable, bearer
from serving.settings import SettingsError, read_secrets
from serving.startup import ProgramArgs, bind_socket, check_all, check_exposure, is_loopback
from tidegate.routing.domain import Code, ServeError

_log = logging.getLogger(__name__)

# By then the runtime has ended every sequence; what is left are answers on their way out.
API_SHUTDOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """Who may use the local API. Implements serving.openai_api.backend.Authenticator."""

    table: TokenTable[Caller]
    is_open: bool

    @classmethod
    def from_settings(cls, settings: LocalApiSettings) -> LocalKeys:
        """Raises SettingsError."""
        secrets = read_secrets(key.secret for key in settings.keys)
        callers = [Caller(tenant=key.tenant, is_admin=key.admin) for key in settings.keys]
        tokens = list(zip(secrets, callers, strict=True))
        try:
            return cls(TokenTable(tokens), is_open=not tokens)
        except ValueError as error:
            raise SettingsError(f"local_api.keys: {error}") from None

    def __call__(self, authorization: str | None) -> Caller:
        if self.is_open:
            return Caller()
        caller = self.table.lookup(bearer(authorization))
        if caller is None:
            raise ServeError(
                Code.UNAUTHENTICATED, "The API key is missing or not valid", reason="INVALID_API_KEY"
            )
        return caller


def build_app(
    node: NodeProgram, settings: LocalApiSettings, keys: LocalKeys, options: FrontOptions
) -> web.Application:
    """Everything the local API answers."""
    app = web.Application(middlewares=[local_guard(settings.allowed_hosts)])
    build_routes(app, node.backend, keys, options)
    is_local = is_loopback(settings.host)

    def may_scrape(request: web.Request) -> None:
        if is_local or keys.is_open:
            return
        if not keys(request.headers.get("Authorization")).is_admin:
            raise ServeError(Code.PERMISSION_DENIED, "Metrics need an admin key", reason="ADMIN_KEY_NEEDED")

    node.add_admin_routes(app, may_scrape)
    return app


def check_edge(settings: EdgeSettings, args: ProgramArgs) -> None:
    """What --check-config finds besides types. Raises SettingsError or ProgramError."""
    api = settings.local_api
    check_all(
        lambda: LocalKeys.from_settings(api),
        lambda: check_exposure({"local_api": api}, keys_configured=bool(api.keys), insecure=args.insecure),
        lambda: _tls(api),
        lambda: check_node(settings, args),
    )


async def run_edge(settings: EdgeSettings, args: ProgramArgs, stop: asyncio.Event) -> None:
    """The daemon's life. Raises ProgramError or SettingsError for what keeps it from starting."""
    api = settings.local_api
    keys = LocalKeys.from_settings(api)
    check_exposure({"local_api": api}, keys_configured=not keys.is_open, insecure=args.insecure)
    listening = bind_socket(api, "local_api", settings.program)
    try:
        node = NodeProgram(settings, args)
        options = FrontOptions(shutdown_s=API_SHUTDOWN_S)
        runner = make_runner(build_app(node, api, keys, options), options)
        await runner.setup()
    except BaseException:
        listening.close()
        raise
    try:
        await web.SockSite(runner, listening, ssl_context=_tls(api)).start()
        host, port = listening.getsockname()[:2]
        _log.info("local API is up", extra={"address": f"{host}:{port}", "tls": api.tls is not None})
        await node.run(stop)
    finally:
        await runner.cleanup()
        listening.close()


def _tls(api: LocalApiSettings) -> ssl.SSLContext | None:
    if api.tls is None:
        return None
    from serving.tls import server_ssl_context

    return server_ssl_context(api.tls, "local_api.tls")
