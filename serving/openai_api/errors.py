"""Errors in OpenAI's shape: one table from the domain's codes to HTTP."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from aiohttp import web

from tidegate.routing.domain import Code, ServeError

# FAILED_PRECONDITION is 422: the request is well-formed but no node may ever serve it as it stands (its data
# class, placement or context length). 409 would say "try again" to the openai SDK, which retries on it, and
# 412 belongs to conditional headers. 499 is what proxies write for "the client went away".
_STATUS: dict[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Code.UNAUTHENTICATED: (401, "authentication_error"),
    Code.PERMISSION_DENIED: (403, "permission_error"),
    Code.NOT_FOUND: (404, "invalid_request_error"),
    Code.ALREADY_EXISTS: (409, "invalid_request_error"),
    Code.FAILED_PRECONDITION: (422, "invalid_request_error"),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Code.CANCELLED: (499, "cancelled_error"),
    Code.INTERNAL: (500, "server_error"),
    Code.UNIMPLEMENTED: (501, "server_error"),
    Code.UNAVAILABLE: (503, "server_error"),
    Code.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
_NEVER_RETRY = frozenset({Code.ALREADY_EXISTS, Code.CANCELLED, Code.UNIMPLEMENTED, Code.DEADLINE_EXCEEDED})
_MODEL_REASONS = frozenset({"NOT_FOUND", "MODEL_NOT_FOUND", "MODEL_UNKNOWN", "UNKNOWN_VARIANT"})
# OpenAI's word, on which its clients shorten the conversation.
_CODES = {"CONTEXT_LENGTH": "context_length_exceeded"}


def invalid(message: str, param: str = "", reason: str = "INVALID_VALUE") -> ServeError:
    """A 400 naming the offending parameter."""
    return ServeError(Code.INVALID_ARGUMENT, message, reason=reason, param=param)


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def serve_error_body(error: ServeError) -> dict[str, Any]:
    """The body for `error`; facts for programs go into a `tidegate` member beside OpenAI's four."""
    code = _CODES.get(error.reason, error.reason.lower())
    if error.code is Code.NOT_FOUND and error.reason in _MODEL_REASONS:
        code = "model_not_found"
    body = error_body(error.message, _STATUS[error.code][1], param=error.param or None, code=code)
    facts: dict[str, Any] = dict(error.details)
    if error.retry_after_ms is not None:
        facts["retry_after_ms"] = round(error.retry_after_ms)
    if facts:
        body["error"]["tidegate"] = facts
    return body


def serve_error_response(error: ServeError) -> web.Response:
    return json_response(serve_error_body(error), status=_STATUS[error.code][0], headers=_headers(error))


def json_response(
    body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    data = json.dumps(body, separators=(",", ":")).encode("ascii")
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


def _headers(error: ServeError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_ms is not None:
        wait_ms = max(0.0, error.retry_after_ms)
        headers["Retry-After"] = str(max(1, math.ceil(wait_ms / 1000)))
        headers["retry-after-ms"] = str(math.ceil(wait_ms))
    elif error.code in _NEVER_RETRY or error.code is Code.RESOURCE_EXHAUSTED:
        # The openai SDK retries 409, 429 and 5xx by itself; where no wait was named a retry cannot help.
        headers["x-should-retry"] = "false"
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def http_exception_response(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp raises by itself (no such route, wrong method, body too large) in OpenAI's shape."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    where = f"{request.method} {request.path}"
    if error.status == 404:
        body = error_body(f"Unknown request URL: {where}", "invalid_request_error", code="unknown_url")
    elif error.status == 405:
        body = error_body(f"Method not allowed: {where}", "invalid_request_error", code="method_not_allowed")
    else:
        other = "invalid_request_error" if error.status < 500 else "server_error"
        kind = next((kind for status, kind in _STATUS.values() if status == error.status), other)
        code = HTTPStatus(error.status).phrase.lower().replace(" ", "_")
        body = error_body(error.reason, kind, code=code)
    return json_response(body, status=error.status, headers=headers)


class HttpError(Exception):
    """A refusal that has no word in the domain, only an HTTP status (408, 413, 415)."""

    def __init__(self, status: int, message: str, code: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.close = close

    def response(self) -> web.Response:
        body = error_body(self.message, "invalid_request_error", code=self.code)
        response = json_response(body, status=self.status)
        if self.close:
            response.force_close()
        return response
