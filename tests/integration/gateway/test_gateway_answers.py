"""A request from a gRPC client through gateway and link to an engine and back."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import grpc
import pytest
from gateway_rig import QUICK, Rig, expected_text, question, served_error, text_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import (
    Accepted,
    Budget,
    BudgetOutcome,
    Code,
    Finished,
    FinishReason,
    OnMiss,
    ServeError,
)
from tidegate.wire import codec, fleet

SERVICE = "tidegate.gateway.v1.GatewayService"


@pytest.mark.parametrize("stream_length", [1, 2, 60])
async def test_every_token_arrives_once_and_in_order(rig: Rig, stream_length: int) -> None:
    await rig.add_node("n1")
    request = question("r1", max_tokens=stream_length, budget=Budget(total_ms=10_000.0))
    events = await rig.ask(request)
    assert text_of(events) == expected_text(request)
    assert isinstance(events[0], Accepted)
    assert (events[0].route.node_id, events[0].route.node_name) == ("n1", "name-n1")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.budget) == (FinishReason.LENGTH, BudgetOutcome.MET)
    assert finished.usage.completion_tokens == stream_length
    assert 0 < finished.timings.ttft_ms <= finished.timings.total_ms


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("takes_following", [False, True])
async def test_the_first_token_shares_a_message_only_with_a_client_that_says_so(
    rig: Rig, takes_following: bool, early: bool
) -> None:
    await rig.add_node("n1")
    message = codec.encode_generate_request(question("r1", max_tokens=3, early_accept=early))
    message.takes_following = takes_following
    messages = [m async for m in rig.stub.Generate(message)]
    shared = [f.WhichOneof("event") for f in messages[0].following]
    assert shared == (["chunk"] if takes_following and not early else [])
    assert not any(m.following for m in messages[1:])
    flat = [each for m in messages for each in (m, *m.following)]
    assert flat[0].WhichOneof("event") == "accepted"
    assert "".join(each.chunk.text for each in flat) == expected_text(question("r1", max_tokens=3))


@pytest.mark.parametrize("takes_following", [False, True])
async def test_headers_go_ahead_of_the_first_token_only_to_a_client_that_says_so(
    rig: Rig, takes_following: bool
) -> None:
    """Others may sit behind a proxy that retries until it has seen headers."""
    node = await rig.add_node("n1")
    node.engine.hang()
    message = codec.encode_generate_request(question("r1", max_tokens=3))
    message.takes_following = takes_following
    call = rig.stub.Generate(message)
    headers = asyncio.ensure_future(call.initial_metadata())
    done, _ = await asyncio.wait([headers], timeout=5.0 if takes_following else 0.3)
    assert bool(done) is takes_following
    node.engine.resume()
    assert len([m async for m in call]) >= 3
    await headers


async def test_a_refusal_after_early_headers_still_has_its_details(rig: Rig) -> None:
    node = await rig.add_node("n1")
    node.engine.hang()
    message = codec.encode_generate_request(question("r1", max_tokens=3))
    message.takes_following = True
    call = rig.stub.Generate(message)
    await call.initial_metadata()
    await node.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = served_error(caught.value)
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "NODE_LOST")


async def test_many_requests_at_once_over_several_nodes_are_never_mixed_up(rig: Rig) -> None:
    for node_id in ("n1", "n2", "n3"):
        await rig.add_node(node_id)
    requests = [question(f"r{i}", f"question {i}", max_tokens=5 + i % 20) for i in range(40)]
    answers = await asyncio.gather(*(rig.ask(r) for r in requests))
    for request, events in zip(requests, answers, strict=True):
        assert text_of(events) == expected_text(request)
    routes = Counter(e.route.node_id for events in answers for e in events if isinstance(e, Accepted))
    assert set(routes) == {"n1", "n2", "n3"}


async def test_a_raw_prompt_and_stop_strings_reach_the_engine(rig: Rig) -> None:
    await rig.add_node("n1")
    whole = question("r1", messages=(), prompt="once upon a time", max_tokens=6)
    words = expected_text(whole).split(" ")
    events = await rig.ask(whole)
    assert text_of(events) == expected_text(whole)
    stopped = await rig.ask(
        question("r2", messages=(), prompt="once upon a time", max_tokens=6, stop=(words[3],))
    )
    assert text_of(stopped).split() == words[:3]


@pytest.mark.parametrize("size", [16 * 1024 + 1, 1024 * 1024])
async def test_large_prompts_arrive_whole(rig: Rig, size: int) -> None:
    await rig.add_node("n1")
    request = question("r1", "ab\n" * (size // 3), max_tokens=3)
    assert text_of(await rig.ask(request)) == expected_text(request)


async def test_a_second_turn_runs_where_its_prefix_is_warm(rig: Rig) -> None:
    for node_id in ("n1", "n2", "n3", "n4"):
        await rig.add_node(node_id, replace(QUICK, prefill_tokens_per_s=5000.0))
    text = "a long story " * 400
    first = (await rig.ask(question("r1", text, session_id="chat")))[0]
    assert isinstance(first, Accepted)
    for turn in range(3):
        events = await rig.ask(question(f"t{turn}", text, session_id="chat"))
        assert isinstance(events[0], Accepted)
        assert events[0].route.node_id == first.route.node_id
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens > 1000


async def test_a_hard_deadline_frees_the_slot(rig: Rig) -> None:
    node = await rig.add_node("n1")
    node.engine.hang()
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1"), timeout_s=0.3)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(2.0):
        while not node.idle:
            await asyncio.sleep(0.005)


async def test_errors_come_with_a_reason_and_when_to_retry(rig: Rig) -> None:
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1"))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "NO_NODE")
    assert caught.value.retry_after_ms
    await rig.add_node("n1")
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1", model="nonsense"))
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1", data_class="nonsense"))
    assert (caught.value.code, caught.value.param) == (Code.INVALID_ARGUMENT, "data_class")
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1", budget=Budget(ttft_ms=0.001), on_miss=OnMiss.REJECT))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_request_are_an_invalid_argument(rig: Rig) -> None:
    call = rig.channel.unary_stream(f"/{SERVICE}/Generate")(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert served_error(caught.value).reason == "BAD_MESSAGE"
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_fleet_and_its_models_can_be_listed_and_watched(rig: Rig) -> None:
    watch = rig.stub.WatchFleet(pb.WatchFleetRequest(), timeout=10.0)
    assert list((await watch.read()).nodes) == []
    await rig.add_node("n1")
    while not (seen := [fleet.decode_node(n) for n in (await watch.read()).nodes]):
        pass
    assert [n.name for n in seen] == ["name-n1"]
    watch.cancel()
    (node,) = [fleet.decode_node(n) for n in (await rig.stub.ListNodes(pb.ListNodesRequest())).nodes]
    assert (node.node_id, node.health.value, node.linked_here, node.slots) == (
        "n1",
        "ready",
        True,
        QUICK.slots,
    )
    (model,) = [fleet.decode_model(m) for m in (await rig.stub.ListModels(pb.ListModelsRequest())).models]
    assert (model.name, model.ready_nodes) == ("oracle", 1)


async def test_explain_decides_without_running_anything(rig: Rig) -> None:
    node = await rig.add_node("n1")
    request = pb.ExplainRequest(request=codec.encode_generate_request(question("r1")))
    decision = fleet.decode_decision(await rig.stub.Explain(request))
    assert decision.route is not None
    assert decision.route.node_id == "n1"
    assert decision.explanation.candidates[0].qualified
    assert node.idle
    refused = pb.ExplainRequest(request=codec.encode_generate_request(question("r1", model="nonsense")))
    assert fleet.decode_decision(await rig.stub.Explain(refused)).route is None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.stub.Explain(pb.ExplainRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_route_decides_as_generate_would_and_refuses_as_it_would(rig: Rig) -> None:
    node = await rig.add_node("n1")

    async def asked(**changes: object) -> pb.RouteResponse:
        request = codec.encode_generate_request(question("r1", **changes))
        return await rig.stub.Route(pb.RouteRequest(request=request))  # type: ignore[no-any-return]

    told = await asked(budget=Budget(ttft_ms=5_000.0))
    route = codec.decode_route(told.route)
    assert (route.node_id, route.model, route.at_risk) == ("n1", "oracle", False)
    assert told.decision_ms > 0
    assert node.idle
    (started, *_) = await rig.ask(question("r1"))
    assert isinstance(started, Accepted)
    assert started.route.node_id == "n1"
    for changes, code in (
        ({"model": "nonsense"}, grpc.StatusCode.NOT_FOUND),
        ({"data_class": "nonsense"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"budget": Budget(ttft_ms=0.001), "on_miss": OnMiss.REJECT}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(**changes)
        assert caught.value.code() is code
    assert served_error(caught.value).reason == "BUDGET_UNMEETABLE"


async def test_metadata_tells_of_route_and_outcome_only_where_asked_for(rig: Rig) -> None:
    await rig.add_node("n1")
    message = codec.encode_generate_request(question("r1", max_tokens=3, budget=Budget(total_ms=10_000.0)))
    message.takes_following = True
    for tells in (True, False):
        message.tell_in_metadata = tells
        call = rig.stub.Generate(message)
        async for _ in call:
            pass
        headers, trailers = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
        ours = {name: value for name, value in {**headers, **trailers}.items() if name.startswith("x-tide")}
        assert bool(ours) is tells
        if tells:
            assert headers["x-tidegate-node"] == "name-n1"
            assert headers["x-tidegate-model"] == "oracle"
            assert (trailers["x-tidegate-attempts"], trailers["x-tidegate-budget"]) == ("1", "met")
            assert float(trailers["x-tidegate-measured-ttft-ms"]) > 0
            assert float(headers["x-tidegate-predicted-ttft-ms"]) > 0


async def test_a_reserved_method_says_that_it_is(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.stub.Resume(pb.ResumeRequest()).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "reserved" in (caught.value.details() or "")


async def test_health_and_reflection_are_served(rig: Rig) -> None:
    health = health_pb2_grpc.HealthStub(rig.channel)
    for name in ("", SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    reflection = reflection_pb2_grpc.ServerReflectionStub(rig.channel).ServerReflectionInfo()
    await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await reflection.read()
    assert SERVICE in [s.name for s in answer.list_services_response.service]
    await reflection.done_writing()
    reflection.cancel()
