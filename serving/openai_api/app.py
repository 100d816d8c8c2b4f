"""The OpenAI HTTP front, over whoever can generate: the gateway's dispatch or a device's own runtime."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from serving.openai_api.answer import Answer, StreamedAnswer, collect, running
from serving.openai_api.backend import Authenticator, Caller, GenerateBackend, ModelCard
from serving.openai_api.bodies import ChatBody, CompletionBody, EmbeddingsBody, GenerateBody
from serving.openai_api.embeddings import body_of, embed, headers_of
from serving.openai_api.errors import json_response
from serving.openai_api.guard import REQUEST_ID_HEADER, SERVER_NAME, current_request_id, error_shape
from serving.openai_api.lifetime import Answers
from serving.openai_api.options import DEFAULT_OPTIONS, FrontOptions
from serving.openai_api.render import ChatShape, CompletionShape, Shape
from serving.openai_api.translate import parse_body, parse_headers, to_request, tools_of
from serving.openai_api.wire import ReaderLost, SseStream, failure_place, read_body
from tidegate.routing.domain import Code, GenerateRequest, ServeError

log = logging.getLogger("serving.openai_api")

_Body = TypeVar("_Body", GenerateBody, EmbeddingsBody)


class _Front:
    """The handlers of one application."""

    def __init__(
        self,
        backend: GenerateBackend,
        authenticate: Authenticator,
        options: FrontOptions,
        wall_clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._authenticate = authenticate
        self._options = options
        self._wall_clock = wall_clock
        self._started_s = int(wall_clock())
        self._answers = Answers()

    async def stop(self, _: web.Application) -> None:
        await self._answers.stop(self._options.shutdown_s)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, ChatBody, ChatShape)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, CompletionBody, CompletionShape)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body, asked = await self._read(request, EmbeddingsBody)
        async with self._answers.one():
            found = await embed(self._backend, asked)
        answer = body_of(found, model=asked.model, as_base64=body.encoding_format == "base64")
        return json_response(answer, headers=headers_of(found))

    async def _generate(
        self, request: web.Request, model: type[GenerateBody], shape: type[Shape]
    ) -> web.StreamResponse:
        body, asked = await self._read(request, model)
        answer = Answer(asked, int(self._wall_clock()), shape, tools_of(body))
        if not body.stream:
            return await self._whole(asked, answer)
        wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await self._streamed(request, asked, answer, include_usage=wants_usage)

    async def _read(self, request: web.Request, model: type[_Body]) -> tuple[_Body, GenerateRequest]:
        """Who asks for what, and whether they may. Raises ServeError and HttpError."""
        began_s = time.monotonic()
        caller = self._caller(request)
        inputs = parse_headers(request.headers)
        body = parse_body(model, await read_body(request, self._options))
        asked = to_request(
            body,
            inputs,
            request_id=current_request_id(),
            tenant=caller.tenant,
            elapsed_ms=(time.monotonic() - began_s) * 1000,
        )
        asked = self._with_adapter(asked)
        if asked.explain and not (caller.is_admin or _listens_on_loopback(request)):
            raise ServeError(
                Code.PERMISSION_DENIED, "Explanations name nodes and need an admin key", param="explain"
            )
        return body, asked

    def _with_adapter(self, asked: GenerateRequest) -> GenerateRequest:
        """MODEL:ADAPTER asks for an adapter, unless a model has that very name."""
        model, colon, adapter = asked.model.rpartition(":")
        if not colon or asked.adapter or not adapter:
            return asked
        cards = self._backend.models(asked.tenant)
        if _find(cards, asked.model) is not None or not (model == "auto" or _find(cards, model)):
            return asked
        return replace(asked, model=model, adapter=adapter)

    async def _whole(self, asked: GenerateRequest, answer: Answer) -> web.StreamResponse:
        async with running(self._backend, asked) as events, self._answers.one():
            whole = await collect(events, answer)
        body = answer.render().whole(whole, answer.tidegate(whole.finished))
        return json_response(body, headers=answer.headers(whole.finished))

    async def _streamed(
        self, request: web.Request, asked: GenerateRequest, answer: Answer, *, include_usage: bool
    ) -> web.StreamResponse:
        stream = SseStream(request, self._options.write_stall_s)
        stream.response.headers[REQUEST_ID_HEADER] = asked.request_id
        stream.response.headers["Server"] = SERVER_NAME
        streamed = StreamedAnswer(
            answer, self._answers, stream, include_usage=include_usage, early=asked.early_accept
        )
        try:
            async with running(self._backend, asked) as events:
                await streamed.run(events)
        except ReaderLost:
            log.info("request_id=%s reader lost, generation cancelled", asked.request_id)
        return stream.response

    async def models(self, request: web.Request) -> web.StreamResponse:
        tenant = self._caller(request).tenant
        cards = [self._card(card, card.name) for card in self._backend.models(tenant)]
        return json_response({"object": "list", "data": cards})

    async def model(self, request: web.Request) -> web.StreamResponse:
        tenant = self._caller(request).tenant
        name = request.match_info["name"]
        card = _find(self._backend.models(tenant), name)
        if card is None:
            raise ServeError(Code.NOT_FOUND, f"The model {name!r} does not exist", param="model")
        return json_response(self._card(card, name))

    def _card(self, card: ModelCard, name: str) -> dict[str, object]:
        body: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": self._started_s,
            "owned_by": card.owned_by,
        }
        if card.context_tokens:
            body["context_window"] = card.context_tokens
        return body | ({"aliases": list(card.aliases)} if card.aliases else {})

    def _caller(self, request: web.Request) -> Caller:
        authorization = request.headers.get("Authorization")
        if authorization is not None and not authorization.isascii():
            # No key has such characters, and comparing them in constant time would raise.
            raise ServeError(Code.UNAUTHENTICATED, "The API key is not valid", reason="INVALID_API_KEY")
        return self._authenticate(authorization)


def _find(cards: Sequence[ModelCard], name: str) -> ModelCard | None:
    return next((card for card in cards if name == card.name or name in card.aliases), None)


def _listens_on_loopback(request: web.Request) -> bool:
    name = request.get_extra_info("sockname")
    if not isinstance(name, tuple):
        return False
    try:
        return ipaddress.ip_address(name[0]).is_loopback
    except ValueError:
        return False


def build_routes(
    app: web.Application,
    backend: GenerateBackend,
    authenticate: Authenticator,
    options: FrontOptions = DEFAULT_OPTIONS,
    *,
    wall_clock: Callable[[], float] = time.time,
) -> None:
    """Adds /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models to `app`.

    Every error of the whole application gets OpenAI's shape from here on, and every answer an x-request-id.
    `wall_clock` gives seconds since 1970 for `created`.
    """
    front = _Front(backend, authenticate, options, wall_clock)
    app.middlewares.insert(0, error_shape(options))
    app.on_shutdown.append(front.stop)
    app.router.add_post("/v1/chat/completions", front.chat)
    app.router.add_post("/v1/completions", front.completions)
    app.router.add_post("/v1/embeddings", front.embeddings)
    app.router.add_get("/v1/models", front.models)
    app.router.add_get("/v1/models/{name:.+}", front.model)


_CLIENTS_FAULTS = (HttpProcessingError, web.RequestPayloadError)


class _NoMessages(logging.Filter):
    """Keeps exceptions' messages out of aiohttp's log lines: a parser quotes the bytes it failed on.

    Bytes that are no request are no error of the server's, though aiohttp logs them as one.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            if isinstance(record.exc_info[1], _CLIENTS_FAULTS):
                record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg = f"{record.getMessage()}: {failure_place(record.exc_info[1])}"
            record.args = ()
            record.exc_info = None
        return True


def make_runner(app: web.Application, options: FrontOptions = DEFAULT_OPTIONS) -> web.AppRunner:
    """A runner whose handlers are cancelled when their client goes away, with bounded waits everywhere."""
    server_log = logging.getLogger("serving.openai_api.http")
    if not server_log.filters:
        server_log.addFilter(_NoMessages())
    return web.AppRunner(
        app,
        handler_cancellation=True,
        keepalive_timeout=options.keepalive_s,
        lingering_time=options.linger_s,
        # The routes end their own answers; this bounds what else still runs.
        shutdown_timeout=min(options.shutdown_s, 1.0),
        access_log=None,
        logger=server_log,
    )
