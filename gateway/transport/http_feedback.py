"""POST /v1/feedback: {"request_id", "worse": true | false, "variant"?}, for callers of the OpenAI API."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from gateway.dispatch import Dispatcher
from gateway.transport.clients import ClientDirectory
from tidegate.routing.domain import Code, ServeError
from tidegate.wire.codec import MAX_DIGEST_CHARS, Judgement
from tidegate.wire.common import label
from tidegate.wire.validate import check_request_id

MAX_BODY_BYTES = 4096
# The ids of answers are made of the request's id and one of these.
PREFIXES = ("chatcmpl-", "cmpl-")


def add_feedback(app: web.Application, dispatcher: Dispatcher, clients: ClientDirectory) -> None:
    """Adds the route. `request_id` is an answer's `x-request-id`, or its `id`."""

    async def feedback(request: web.Request) -> web.Response:
        caller = clients.http_caller(_ascii(request.headers.get("Authorization")))
        data = await request.content.read(MAX_BODY_BYTES + 1)
        judged = parse(data)
        client = clients.client(caller.tenant)
        dispatcher.feedback(judged.request_id, client, worse=judged.worse, variant=judged.variant)
        return web.json_response({"recorded": True})

    app.router.add_post("/v1/feedback", feedback)


def parse(data: bytes) -> Judgement:
    """Raises ServeError(INVALID_ARGUMENT)."""
    if len(data) > MAX_BODY_BYTES:
        raise _invalid("", f"the body is longer than {MAX_BODY_BYTES} bytes")
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _invalid("", "the body must be a JSON object")
    request_id, worse = body.get("request_id"), body.get("worse")
    if not isinstance(request_id, str):
        raise _invalid("request_id", "request_id: must be a string")
    if not isinstance(worse, bool):
        raise _invalid("worse", "worse: must be true or false")
    variant = body.get("variant", "")
    if not isinstance(variant, str):
        raise _invalid("variant", "variant: must be a string")
    for prefix in PREFIXES:
        request_id = request_id.removeprefix(prefix)
    variant = label(variant, "variant", limit=MAX_DIGEST_CHARS)
    return Judgement(check_request_id(request_id), worse, variant)


def _ascii(authorization: str | None) -> str | None:
    if authorization is not None and not authorization.isascii():
        # No key has such characters, and comparing them in constant time would raise.
        raise ServeError(Code.UNAUTHENTICATED, "The API key is not valid", reason="INVALID_API_KEY")
    return authorization


def _invalid(param: str, message: str) -> ServeError:
    return ServeError(Code.INVALID_ARGUMENT, message, reason="INVALID_VALUE", param=param)
