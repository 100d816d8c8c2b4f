"""The device's own API: GenerateBackend over this node alone, with or without a gateway."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from serving.node.failures import serve_error
from serving.node.local_route import local_route
from serving.node.progress import Progress
from serving.node.runtime import NodeRuntime
from serving.openai_api.backend import ModelCard
from tidegate.link.seam import WorkRefused
from tidegate.routing.domain import (
    Accepted,
    AttemptKey,
    CacheDelta,
    Cause,
    Chunk,
    Code,
    Failure,
    Finish,
    GenerateEvent,
    GenerateRequest,
    InputKind,
    Placement,
    SequenceOutput,
    ServeError,
    Tier,
    Variant,
    Work,
    adapter_capability,
    needed_capabilities,
)
from tidegate.routing.embedding import pack_texts
from tidegate.routing.prefix import canonical_bytes, prefix_names

UNLIMITED_CREDITS = 2**31 - 1
AUTO = ("", "auto")
ATTEMPT_NO = 1


class _Stream:
    """Outputs of one sequence on their way to its reader."""

    def __init__(self) -> None:
        self._outputs: deque[SequenceOutput] = deque()
        self._more = asyncio.Event()

    def put(self, output: SequenceOutput) -> None:
        self._outputs.append(output)
        self._more.set()

    async def get(self) -> SequenceOutput:
        while not self._outputs:
            self._more.clear()
            await self._more.wait()
        return self._outputs.popleft()


class LocalBackend:
    """Implements GenerateBackend and is the node's listener for its own sequences.

    `prefix_key` names prefixes for this node only; it is random per process unless given. A request without
    max_tokens gets `default_max_tokens`.
    """

    def __init__(
        self,
        runtime: NodeRuntime,
        *,
        tier: Tier = Tier.EDGE,
        default_max_tokens: int = 512,
        clock: Callable[[], float] | None = None,
        prefix_key: bytes | None = None,
    ) -> None:
        self._runtime = runtime
        self._tier = tier
        self._default_max_tokens = default_max_tokens
        self._clock = clock
        self._prefix_key = prefix_key or secrets.token_bytes(32)
        self._streams: dict[AttemptKey, _Stream] = {}
        self._numbers = itertools.count(1)
        runtime.attach(self)

    def close(self) -> None:
        """Leaves the node; running requests end with UNAVAILABLE."""
        self._runtime.detach(self)
        finish = Finish(Failure(Cause.DRAINING, "the local API closed"))
        for key, stream in self._streams.items():
            stream.put(SequenceOutput(key, first_index=0, finish=finish))

    # --- GenerateBackend ---

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        variant = self._resolve(request.model)
        work = self._work(request, variant)
        route = local_route(request, work, self._runtime.announcement(), self._runtime.load(), self._tier)
        progress = Progress(request.budget, self._clock or asyncio.get_running_loop().time)
        stream = self._streams[work.key] = _Stream()
        try:
            self._submit(work)
            if request.early_accept:
                yield Accepted(route)
            accepted = request.early_accept
            while True:
                output = await stream.get()
                progress.note(output)
                if output.finish is not None and isinstance(output.finish.result, Failure):
                    raise serve_error(output.finish.result, self._runtime.load())
                if not accepted:
                    accepted = True
                    yield Accepted(route)
                if output.count or output.text:
                    yield Chunk.of(output, ATTEMPT_NO)
                if output.finish is not None:
                    yield progress.finished(output.finish)
                    return
        finally:
            del self._streams[work.key]
            self._runtime.cancel(work.key)

    def models(self, tenant: str) -> Sequence[ModelCard]:
        """One card per model name, first variant first."""
        cards: dict[str, ModelCard] = {}
        for variant in self._runtime.info.variants:
            card = ModelCard(variant.model, variant.aliases, variant.context_tokens)
            cards.setdefault(variant.model, card)
        return tuple(cards.values())

    # --- NodeListener ---

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.key)
            if stream is not None:
                stream.put(output)

    def load_changed(self) -> None:
        """Local callers do not route by load."""

    def cache_changed(self, delta: CacheDelta) -> None:
        """Local callers do not route by cache."""

    # --- inside ---

    def _resolve(self, model: str) -> Variant:
        variants = self._runtime.info.variants
        for variant in variants:
            if model in AUTO or model == variant.model or model in variant.aliases:
                return variant
        names = ", ".join(dict.fromkeys(variant.model for variant in variants))
        raise ServeError(
            Code.NOT_FOUND,
            f"no such model here; this node serves: {names}",
            reason="MODEL_NOT_FOUND",
            param="model",
        )

    def _work(self, request: GenerateRequest, variant: Variant) -> Work:
        if not request.embed and (request.prompt is None) == (not request.messages):
            raise ServeError(
                Code.INVALID_ARGUMENT, "exactly one of messages and prompt must be set", param="messages"
            )
        if request.placement not in (Placement.ANY, Placement(self._tier.value)):
            raise ServeError(
                Code.FAILED_PRECONDITION,
                f"this is one {self._tier.value} node and answers only here",
                reason="PLACEMENT_NOT_HERE",
                param="placement",
            )
        if request.adapter and adapter_capability(request.adapter) not in variant.capabilities:
            raise ServeError(
                Code.NOT_FOUND, "this node has no such adapter", reason="ADAPTER_NOT_FOUND", param="adapter"
            )
        if lacking := needed_capabilities(request) - variant.capabilities:
            raise ServeError(
                Code.FAILED_PRECONDITION,
                f"this node's model cannot do: {', '.join(sorted(lacking))}",
                reason="CAPABILITY",
            )
        if request.embed:
            kind, data = InputKind.EMBED, pack_texts(request.embed)
        elif request.prompt is None:
            kind, data = InputKind.CHAT, canonical_bytes(request.messages)
        else:
            kind, data = InputKind.TEXT, request.prompt.encode("utf-8")
        return Work(
            # Local ids may repeat (a client's x-request-id), the node's attempts may not.
            key=AttemptKey(f"local/{next(self._numbers)}/{request.request_id}", ATTEMPT_NO),
            # A gateway's tenants have names of their own making; what is cached for them is not shared.
            tenant=f"local/{request.tenant}",
            variant_digest=variant.digest,
            input_kind=kind,
            input=data,
            sampling=request.sampling,
            max_tokens=len(request.embed) or request.max_tokens or self._default_max_tokens,
            stop=request.stop,
            prefix_hashes=()
            if request.embed
            else prefix_names(data, self._prefix_key + request.adapter.encode()),
            remaining_ms=request.remaining_ms,
            ttft_remaining_ms=request.budget.ttft_ms,
            priority=request.priority,
            credits=UNLIMITED_CREDITS,
            adapter=request.adapter,
            format=request.format,
            top_logprobs=request.top_logprobs,
            data_class=request.data_class,
        )

    def _submit(self, work: Work) -> None:
        try:
            self._runtime.submit(self, work)
        except WorkRefused as refused:
            raise serve_error(refused.failure, self._runtime.load()) from refused
