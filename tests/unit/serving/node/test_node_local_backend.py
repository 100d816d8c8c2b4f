from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from node_helpers import DIGEST, SETTINGS, Node

from serving.engines.oracle import OracleSettings, oracle_text
from serving.engines.oracle_embedding import oracle_vector
from serving.node import LocalBackend
from serving.openai_api.backend import GenerateBackend
from tidegate.link.seam import WorkRefused
from tidegate.routing.domain import (
    Accepted,
    Budget,
    BudgetOutcome,
    Cause,
    Chunk,
    Code,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    Message,
    OutputFormat,
    Placement,
    Role,
    Sampling,
    ServeError,
    Tier,
    Work,
    needed_capabilities,
)
from tidegate.routing.embedding import Collector
from tidegate.routing.prefix import canonical_bytes

pytestmark = pytest.mark.looptime

CHAT = (Message(Role.USER, "how high is the tide?"),)
REQUEST = GenerateRequest(request_id="r1", messages=CHAT, max_tokens=5)
ANSWER = oracle_text(DIGEST, canonical_bytes(CHAT), 5)


class Local:
    """A started node with its local backend."""

    def __init__(self, settings: OracleSettings = SETTINGS) -> None:
        self.node = Node(settings)

    async def __aenter__(self) -> Local:
        await self.node.__aenter__()
        self.backend = LocalBackend(self.node.runtime, default_max_tokens=7)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.backend.close()
        await self.node.__aexit__()

    async def all(self, request: GenerateRequest) -> list[GenerateEvent]:
        return [event async for event in self.backend.generate(request)]

    async def error(self, request: GenerateRequest) -> ServeError:
        with pytest.raises(ServeError) as raised:
            await self.all(request)
        return raised.value


def text(events: list[GenerateEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def test_a_chat_is_answered_with_route_chunks_and_finish() -> None:
    async with Local() as local:
        events = await local.all(REQUEST)
        assert isinstance(events[0], Accepted)
        route = events[0].route
        assert (route.node_id, route.node_name, route.tier) == ("node-1", "kitchen", Tier.EDGE)
        assert (route.model, route.variant_digest) == ("tide-1b", DIGEST)
        chunks = [event for event in events if isinstance(event, Chunk)]
        assert [chunk.first_index for chunk in chunks] == [0, 1, 2, 3, 4]
        assert len(chunks) == len(events) - 2
        assert text(events) == ANSWER
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert finished.reason is FinishReason.LENGTH
        assert finished.usage.completion_tokens == 5
        assert finished.budget is BudgetOutcome.NONE
        assert finished.timings.tpot_ms == pytest.approx(100.0)
        assert finished.timings.ttft_ms == pytest.approx(finished.timings.prefill_ms)
        assert finished.timings.total_ms == pytest.approx(finished.timings.ttft_ms + 400.0)


async def test_a_prompt_is_taken_as_it_is() -> None:
    async with Local() as local:
        events = await local.all(replace(REQUEST, messages=(), prompt="once upon"))
        assert text(events) == oracle_text(DIGEST, b"once upon", 5)


async def test_without_max_tokens_the_default_holds() -> None:
    async with Local() as local:
        events = await local.all(replace(REQUEST, max_tokens=0))
        assert text(events) == oracle_text(DIGEST, canonical_bytes(CHAT), 7)


@pytest.mark.parametrize("model", ["tide-1b", "tide", "auto", ""])
async def test_names_aliases_and_auto_resolve(model: str) -> None:
    async with Local() as local:
        assert text(await local.all(replace(REQUEST, model=model))) == ANSWER


async def test_an_unknown_model_is_not_found_and_the_error_names_what_is() -> None:
    async with Local() as local:
        error = await local.error(replace(REQUEST, model="gpt-9"))
        assert (error.code, error.reason, error.param) == (Code.NOT_FOUND, "MODEL_NOT_FOUND", "model")
        assert "tide-1b" in error.message


async def test_models_are_listed_with_their_aliases() -> None:
    async with Local() as local:
        backend: GenerateBackend = local.backend
        (card,) = backend.models("default")
        assert (card.name, card.aliases, card.context_tokens) == ("tide-1b", ("tide",), 4096)


async def test_stop_strings_reach_the_engine() -> None:
    stop = ANSWER[7:11]
    async with Local() as local:
        events = await local.all(replace(REQUEST, stop=(stop,)))
        assert text(events) == ANSWER[:7]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.STOP


async def test_accepted_waits_for_the_first_token_unless_asked_for_early() -> None:
    async with Local() as local:
        for early, expected in ((False, True), (True, False)):
            async with aclosing(local.backend.generate(replace(REQUEST, early_accept=early))) as events:
                local.node.engine.hang()
                waiting = asyncio.ensure_future(anext(events))
                await asyncio.sleep(5)
                assert waiting.done() is not expected
                local.node.engine.resume()
                assert isinstance(await waiting, Accepted)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(ttft_ms=1000.0), BudgetOutcome.MET),
        (Budget(ttft_ms=1.0), BudgetOutcome.MISSED),
        (Budget(tpot_ms=101.0), BudgetOutcome.MET),
        (Budget(tpot_ms=99.0), BudgetOutcome.MISSED),
        (Budget(ttft_ms=1000.0, total_ms=300.0), BudgetOutcome.MISSED),
        (Budget(target_share=0.9), BudgetOutcome.NONE),
    ],
)
async def test_the_budget_is_reported_met_or_missed(budget: Budget, expected: BudgetOutcome) -> None:
    async with Local() as local:
        finished = (await local.all(replace(REQUEST, budget=budget)))[-1]
        assert isinstance(finished, Finished)
        assert finished.budget is expected


async def test_closing_the_iterator_frees_the_slot() -> None:
    async with Local() as local:
        async with aclosing(local.backend.generate(replace(REQUEST, max_tokens=500))) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    break
            assert local.node.engine.load().running == 1
        assert local.node.engine.load().running == 0


@pytest.mark.parametrize("window_s", [0.0, 0.001, 0.35])
async def test_a_cancelled_consumer_frees_the_slot(window_s: float) -> None:
    async with Local() as local:
        consumer = asyncio.create_task(local.all(replace(REQUEST, max_tokens=500)))
        await asyncio.sleep(window_s)
        assert local.node.engine.load().running + local.node.engine.load().queued == 1
        consumer.cancel()
        await asyncio.wait([consumer])
        assert consumer.cancelled()
        assert local.node.engine.load().running + local.node.engine.load().queued == 0
        assert text(await local.all(REQUEST)) == ANSWER


async def test_a_request_id_may_come_again() -> None:
    async with Local() as local:
        answers = await asyncio.gather(local.all(REQUEST), local.all(REQUEST))
        assert [text(events) for events in answers] == [ANSWER, ANSWER]


async def test_the_second_turn_finds_its_prefix_warm() -> None:
    first = (Message(Role.USER, "tide " * 300),)
    second = (*first, Message(Role.ASSISTANT, "yes"), Message(Role.USER, "and then?"))
    async with Local() as local:
        finished = []
        for messages in (first, second):
            events = await local.all(replace(REQUEST, messages=messages))
            assert isinstance(events[-1], Finished)
            finished.append(events[-1])
        assert [event.usage.cached_tokens for event in finished] == [0, 256]
        assert finished[1].timings.prefill_ms < finished[0].timings.prefill_ms


# --- errors ---


async def test_local_callers_share_no_cache_with_a_gateways_tenant_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Local() as local:
        taken: list[Work] = []
        monkeypatch.setattr(local.node.engine, "submit", taken.append)
        for tenant in ("default", "team"):
            asking = asyncio.create_task(local.all(replace(REQUEST, tenant=tenant)))
            await asyncio.sleep(0.1)
            asking.cancel()
        assert [work.tenant for work in taken] == ["local/default", "local/team"]


async def test_neither_or_both_of_messages_and_prompt_is_invalid() -> None:
    async with Local() as local:
        for request in (replace(REQUEST, messages=()), replace(REQUEST, prompt="x")):
            assert (await local.error(request)).code is Code.INVALID_ARGUMENT


async def test_an_input_beyond_the_context_is_invalid_and_not_quoted() -> None:
    async with Local() as local:
        error = await local.error(replace(REQUEST, messages=(), prompt="secret " * 5000))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CONTEXT_LENGTH")
        assert "secret" not in error.message


async def test_a_request_for_the_cloud_is_refused_here() -> None:
    async with Local() as local:
        error = await local.error(replace(REQUEST, placement=Placement.CLOUD))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "PLACEMENT_NOT_HERE")
        assert text(await local.all(replace(REQUEST, placement=Placement.EDGE))) == ANSWER


async def test_overload_is_exhausted_with_a_time_to_come_back() -> None:
    async with Local() as local:
        long = replace(REQUEST, max_tokens=100)
        consumers = [asyncio.create_task(local.all(long)) for _ in range(4)]
        await asyncio.sleep(0.35)
        error = await local.error(REQUEST)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert error.retry_after_ms is not None
        assert 5_000 < error.retry_after_ms < 15_000
        for consumer in consumers:
            assert isinstance((await consumer)[-1], Finished)


async def test_a_draining_node_is_unavailable() -> None:
    async with Local() as local:
        local.node.runtime.drain()
        error = await local.error(REQUEST)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "DRAINING")
        assert error.retry_after_ms is not None


async def test_a_crash_mid_stream_ends_the_answer_with_its_cause() -> None:
    async with Local() as local:
        events: list[GenerateEvent] = []

        async def consume() -> None:
            async for event in local.backend.generate(REQUEST):
                events.append(event)
                if len(events) == 3:
                    local.node.engine.crash()

        with pytest.raises(ServeError) as raised:
            await consume()
        assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "ENGINE_CRASHED")
        assert ANSWER.startswith(text(events))
        assert (await local.error(REQUEST)).reason == "ENGINE_CRASHED"
        await asyncio.sleep(3.5)
        assert text(await local.all(REQUEST)) == ANSWER


async def test_the_hard_deadline_is_an_error() -> None:
    async with Local() as local:
        error = await local.error(replace(REQUEST, max_tokens=500, remaining_ms=500.0))
        assert error.code is Code.DEADLINE_EXCEEDED
        assert local.node.engine.load().running == 0


async def test_closing_the_backend_ends_its_requests() -> None:
    async with Local() as local:
        consumer = asyncio.create_task(local.all(replace(REQUEST, max_tokens=500)))
        await asyncio.sleep(0.35)
        local.backend.close()
        with pytest.raises(ServeError) as raised:
            await consumer
        assert raised.value.code is Code.UNAVAILABLE
        assert local.node.engine.load().running == 0


async def test_stopping_the_node_ends_its_requests() -> None:
    async with Local() as local:
        consumer = asyncio.create_task(local.all(replace(REQUEST, max_tokens=500)))
        await asyncio.sleep(0.35)
        await local.node.runtime.stop(0.1)
        with pytest.raises(ServeError) as raised:
            await consumer
        assert raised.value.reason == "DRAINING"


async def test_an_adapter_that_is_not_here_is_not_found() -> None:
    async with Local() as local:
        error = await local.error(replace(REQUEST, adapter="red"))
        assert (error.code, error.reason) == (Code.NOT_FOUND, "ADAPTER_NOT_FOUND")


async def test_texts_are_embedded_here() -> None:
    texts = ("a tide", "a gate")
    async with Local() as local:
        events = await local.all(GenerateRequest("r1", embed=texts))
    collector = Collector()
    (found,) = [done for event in events if (done := collector.take(event)) is not None]
    assert list(found.vectors) == [pytest.approx(oracle_vector(DIGEST, text), abs=1e-6) for text in texts]


async def test_a_node_that_does_not_embed_says_so() -> None:
    async with Local(replace(SETTINGS, capabilities=frozenset())) as local:
        error = await local.error(GenerateRequest("r1", embed=("x",)))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "CAPABILITY")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": OutputFormat(json_schema="{}")},
        {"format": OutputFormat(grammar="root ::= [a]")},
        {"top_logprobs": 0},
        {"sampling": Sampling(logit_bias=((1, 1.0),))},
        {"sampling": Sampling(mirostat=2)},
    ],
)
async def test_what_an_engine_cannot_do_is_refused_and_not_left_out(changes: dict[str, Any]) -> None:
    """By the local door in words, and by the node itself whoever gives the work."""
    async with Local() as local:
        request = replace(REQUEST, **changes)
        error = await local.error(request)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "CAPABILITY")
        able = replace(local.node.runtime.info.variants[0], capabilities=needed_capabilities(request))
        with pytest.raises(WorkRefused) as refused:
            local.node.runtime.submit(local.backend, local.backend._work(request, able))
        assert refused.value.failure.cause is Cause.UNKNOWN_VARIANT
