"""From what an upstream server says to a typed Failure, without repeating text that may hold a prompt."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp

from tidegate.routing.domain import Cause, Failure

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_BAD_INPUT = frozenset({400, 413, 422})
# OpenAI's word and llama-server's.
_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_BUSY = frozenset({429, 503})


class UpstreamFailed(Exception):
    """One call upstream failed. `failure` is what the sequence ends with."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause.value}: {failure.detail}")
        self.failure = failure


class UpstreamGone(UpstreamFailed):
    """No answer at all: the server cannot be reached, or the connection broke."""


def upstream_failed(detail: str) -> UpstreamFailed:
    return UpstreamFailed(Failure(Cause.UPSTREAM, detail))


def failure_of_status(status: int, body: bytes = b"") -> Failure:
    """The failure that an HTTP status means. Of `body` only the machine-readable error code is kept."""
    word = _error_word(body)
    said = f"HTTP {status}" + (f" ({word})" if word else "")
    if status in _BAD_INPUT and word in _TOO_LONG:
        return Failure(Cause.CONTEXT_LENGTH, f"the input does not fit the upstream server's context: {said}")
    if status in _BAD_INPUT:
        return Failure(Cause.INVALID_INPUT, f"the upstream server refused the input: {said}")
    if status in _BUSY:
        return Failure(Cause.OVERLOADED, f"the upstream server is overloaded: {said}")
    if status in (401, 403):
        return Failure(Cause.UPSTREAM, f"the upstream server refused the API key: {said}")
    if 300 <= status < 400:
        return Failure(Cause.UPSTREAM, f"the upstream server redirects, which is not followed: {said}")
    if status == 404:
        return Failure(Cause.UPSTREAM, f"the upstream server knows no such model or path: {said}")
    return Failure(Cause.UPSTREAM, f"the upstream server failed: {said}")


def failure_of_error(error: Any) -> Failure:
    """The failure that an error object inside a stream means."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    body = json.dumps({"error": error}).encode("utf-8")
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return failure_of_status(code, body)
    word = _error_word(body)
    return Failure(
        Cause.UPSTREAM, "the upstream server broke the stream off" + (f" ({word})" if word else "")
    )


def failure_of_exception(error: Exception) -> Failure:
    """The failure that a broken connection means."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Failure(Cause.UPSTREAM, "the upstream server's certificate is not trusted")
    if isinstance(error, aiohttp.ClientSSLError):
        return Failure(Cause.UPSTREAM, "no TLS connection to the upstream server can be made")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure(Cause.UPSTREAM, "the upstream server cannot be reached")
    if isinstance(error, TimeoutError):
        return Failure(Cause.UPSTREAM, "the upstream server took too long to answer")
    return Failure(Cause.UPSTREAM, f"the connection to the upstream server broke ({type(error).__name__})")


def _error_word(body: bytes) -> str:
    """`code` or `type` of an error body if it looks like an identifier, else ""."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        return ""
    for key in ("code", "type"):
        value = error.get(key)
        if isinstance(value, str) and _WORD.fullmatch(value):
            return value
    return ""
