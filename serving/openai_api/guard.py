"""Middlewares: one keeps every error in OpenAI's shape, one keeps web pages away from a local API."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from serving.openai_api.errors import HttpError, http_exception_response, serve_error_response
from serving.openai_api.options import FrontOptions
from serving.openai_api.translate import valid_request_id
from serving.openai_api.wire import ReaderLost, failure_place, send_whole
from tidegate.routing.domain import Code, ServeError

log = logging.getLogger("serving.openai_api")

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
REQUEST_ID_HEADER = "x-request-id"
SERVER_NAME = "tidegate"
_request_id: ContextVar[str] = ContextVar("request_id")


def current_request_id() -> str:
    """The id of the request this task serves."""
    return _request_id.get()


def error_shape(options: FrontOptions) -> Middleware:
    """The outermost middleware: request id on every answer, every failure as an OpenAI error object."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID_HEADER)
        request_id = given if given is not None and valid_request_id(given) else str(uuid.uuid4())
        _request_id.set(request_id)
        response = await _shaped(request, handler)
        if not response.prepared:
            response.headers[REQUEST_ID_HEADER] = request_id
            response.headers["Server"] = SERVER_NAME
            try:
                await send_whole(request, response, options.write_stall_s)
            except ReaderLost:
                log.debug("reader lost before its answer was sent")
        return response

    return middleware


async def _shaped(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ServeError as error:
        # Its frames hold it and the whole request: a cycle that would stay until a full collection.
        error.__traceback__ = None
        return serve_error_response(error)
    except HttpError as error:
        return error.response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return http_exception_response(request, error)
    except Exception as error:  # noqa: BLE001 - the request's boundary; aiohttp would log the message
        log.error("request failed: %s", failure_place(error))
        return serve_error_response(ServeError(Code.INTERNAL, "The server failed"))


def local_guard(allowed_hosts: Iterable[str] = ()) -> Middleware:
    """Refuses what a web page in the user's browser could send to a local API.

    DNS rebinding makes a page's own name point at 127.0.0.1: its requests carry that name in Host (and
    Origin). So both must name this machine or one of `allowed_hosts` (names without port; any port is
    accepted), and anything that changes state must be JSON, which a page cannot send across origins without
    asking first.
    """
    allowed = LOCAL_HOSTS | {host.lower().strip("[]") for host in allowed_hosts}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or _host_name(f"//{hosts[0]}") not in allowed:
            raise _refused("The Host header does not name this machine", "HOST_NOT_ALLOWED")
        for origin in request.headers.getall("Origin", []):
            if not origin.startswith(("http://", "https://")) or _host_name(origin) not in allowed:
                raise _refused("Requests from this origin are not allowed", "ORIGIN_NOT_ALLOWED")
        if request.method in ("POST", "PUT", "PATCH") and request.content_type != "application/json":
            raise HttpError(415, "The Content-Type must be application/json", "unsupported_media_type")
        return await handler(request)

    return middleware


def _refused(message: str, reason: str) -> ServeError:
    return ServeError(Code.PERMISSION_DENIED, message, reason=reason)


def _host_name(url: str) -> str | None:
    """The host of `url` in lower case, without port and brackets; None when it is not a plain host[:port]."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname
